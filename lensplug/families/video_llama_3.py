"""VideoLLaMA 3: images and frames of any proportions, and of a frame only what is not as in the one before.

An image is scaled to whole cells, its proportions nearly kept, and seen whole. The frames of a video are scaled alike
and read one by one, 2 x 2 patches to a position; a position that differs little from the one at its place in the frame
before is left out. The processor says which are kept, and writes the time of each frame before it.

Where the size of the original is not known (`lens.encode` without `images=` or `videos=`), it is known which positions
belong to a medium, and it has no grid.

Follows the processors and `VideoLlama3Model` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lensplug.families import MediaLayout, ProcessedBatch, by_example, qwen_vl, shared_out
from lensplug.families.qwen_vl import Cells
from lensplug.geometry import ImageGrid, VideoGrid
from lensplug.media import Video


@dataclass(frozen=True)
class Kept:
    """The cells of a video, and which are kept."""

    cells: Cells
    mask: Bool[Tensor, " cell"]

    def __len__(self) -> int:
        """The number of positions."""
        return int(self.mask.sum())


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image and video in the batch."""
    lengths: dict[str, list[list[int]]] = {}
    grids: dict[tuple[int, int], ImageGrid] = {}
    video_grids: dict[tuple[int, int], VideoGrid] = {}
    if "image" in batch.placeholders and "image_grid_thw" in batch.outputs:
        lengths["image"], cells = shared_out(batch.placeholders["image"], list(_cells(batch, "image")))
        sizes = by_example(lengths["image"], batch.media.image_sizes)
        grids = {place: qwen_vl.image_grid(cells[place], *size) for place, size in sizes.items()}
    if "video" in batch.placeholders and "video_grid_thw" in batch.outputs:
        of_videos = list(_cells(batch, "video"))
        masks = batch.outputs["video_compression_mask"].cpu().split([len(one) for one in of_videos])
        kept = [Kept(one, mask) for one, mask in zip(of_videos, masks, strict=True)]
        lengths["video"], places = shared_out(batch.placeholders["video"], kept)
        videos = by_example(lengths["video"], batch.media.videos)
        made = {place: video_grid(places[place], video) for place, video in videos.items()}
        video_grids = {place: grid for place, grid in made.items() if grid is not None}
    return MediaLayout(lengths, grids, video_grids)


def _cells(batch: ProcessedBatch, kind: str) -> Iterable[Cells]:
    """How many cells each medium is cut into; neighbouring patches are merged to one."""
    counts: Any = zip(batch.outputs[f"{kind}_grid_thw"], batch.outputs[f"{kind}_merge_sizes"], strict=True)
    for (steps, rows, columns), merged in counts:
        yield Cells(int(steps), int(rows // merged), int(columns // merged))


def video_grid(kept: Kept, video: Video) -> VideoGrid | None:
    """The positions of a video; None for one of another number of frames."""
    whole = qwen_vl.video_grid(kept.cells, video, 1)
    if whole is None:
        return None
    mask = kept.mask
    none = torch.zeros(len(kept), dtype=torch.bool)
    return VideoGrid(whole.boxes[mask], whole.frame[mask], none, video.width, video.height, video.times_s)
