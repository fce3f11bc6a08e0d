"""Videos whose frames stand in the prompt as images do, with the image's placeholder: InternVL and SmolVLM.

Every frame is squeezed into one view, and has a run of placeholders of its own, with words between. Where videos were
given (`lens.prepare`, or `lens.encode` with `videos=`), their frames are told from images: all runs of an example
without images are frames; of one with both, those behind the words that the processor writes before a frame. Else, and
where numbers do not agree, they stay images.

Follows the processors of InternVL and SmolVLM in transformers 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from lensplug.families import MediaLayout, ProcessedBatch
from lensplug.geometry import ImageGrid, VideoGrid
from lensplug.media import Video

WORDS_BEFORE = 12
"""Tokens in which the words before a frame are looked for."""


@dataclass(frozen=True)
class Runs:
    """The runs of image placeholders of a batch: for each example, which are frames."""

    is_frame: list[list[bool]]
    lengths: Sequence[Sequence[int]]

    @classmethod
    def of(cls, batch: ProcessedBatch, words: str | None = None) -> Runs:
        """Tell frames from images.

        Args:
            batch: The batch.
            words: A regular expression for what stands before a frame, without blanks.
        """
        lengths = batch.placeholders["image"]
        return cls([_frames(batch, example, words) for example in range(len(lengths))], lengths)

    def images(self, batch: ProcessedBatch) -> ProcessedBatch:
        """The batch without frames."""
        kept = [
            [length for length, frame in zip(own, frames, strict=True) if not frame]
            for own, frames in zip(self.lengths, self.is_frame, strict=True)
        ]
        return replace(batch, placeholders={**batch.placeholders, "image": kept})

    def with_videos(
        self, layout: MediaLayout, batch: ProcessedBatch, view: Callable[[Video], ImageGrid | None]
    ) -> MediaLayout:
        """The layout of the images, and the grid of every video.

        Args:
            layout: That of the images.
            batch: The batch.
            view: A video -> the grid of each of its frames.
        """
        if not any(map(any, self.is_frame)):
            return layout
        lengths: list[list[int]] = []
        grids: dict[tuple[int, int], VideoGrid] = {}
        for example, (own, frames) in enumerate(zip(self.lengths, self.is_frame, strict=True)):
            of_frames = iter([length for length, frame in zip(own, frames, strict=True) if frame])
            lengths.append([])
            for index, video in enumerate(batch.media.videos[example] if any(frames) else ()):
                positions = [next(of_frames) for _ in range(len(video))]
                lengths[-1].append(sum(positions))
                grid = view(video)
                if grid is not None and set(positions) == {len(grid)}:
                    grids[example, index] = repeated(grid, video)
        return replace(
            layout, lengths={**layout.lengths, "video": lengths}, video_grids=grids, video_runs=self.is_frame
        )


def _frames(batch: ProcessedBatch, example: int, words: str | None) -> list[bool]:
    """Which runs of an example are frames."""
    runs, images, videos = batch.placeholders["image"][example], batch.media.images, batch.media.videos
    none = [False] * len(runs)
    if len(videos) != len(batch.placeholders["image"]) or not videos[example]:
        return none
    count = sum(map(len, videos[example]))
    if not images or not images[example]:
        return [True] * len(runs) if len(runs) == count else none
    if words is None or batch.processor is None:
        return none
    is_frame = [re.search(f"{words}$", text) is not None for text in _texts_before(batch, example)]
    return is_frame if sum(is_frame) == count and len(is_frame) == len(runs) else none


def _texts_before(batch: ProcessedBatch, example: int) -> list[str]:
    """The words before each run of placeholders, without blanks."""
    tokens = batch.outputs["input_ids"][example].tolist()
    starts, at = [], 0
    for is_image, run in groupby(token == batch.config.image_token_id for token in tokens):
        starts += [at] if is_image else []
        at += len(list(run))
    decode = batch.processor.tokenizer.decode
    return ["".join(decode(tokens[max(start - WORDS_BEFORE, 0) : start]).split()) for start in starts]


def repeated(grid: ImageGrid, video: Video) -> VideoGrid:
    """The grid of a video of which every frame has the same grid."""
    count = len(video)
    index = torch.arange(count).repeat_interleave(len(grid))
    return VideoGrid(
        grid.boxes.repeat(count, 1), index, grid.newline.repeat(count), video.width, video.height, video.times_s
    )
