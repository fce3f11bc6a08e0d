"""GLM-4.1V, GLM-4.6V and GLM-OCR: the cells of Qwen2-VL; the frames of a video stand in the prompt as images.

Images are scaled to whole cells of 28 px, their proportions nearly kept, and seen whole. Frames are read in pairs: each
pair has a run of image placeholders and its time as a word, between words that begin and end the video. These tell
frames from images. (The models of transformers 5.24 refuse a prompt of both.)

Follows `Glm4vProcessor` and `Glm46VProcessor` of transformers 5.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

from lensplug.families import MediaLayout, ProcessedBatch, qwen_vl


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image and video in the batch."""
    runs = batch.placeholders.get("image")
    if runs is None:
        return MediaLayout()
    frames = video_runs(batch)
    if not any(map(any, frames)):
        return qwen_vl.media_layout(batch)
    kinds = {
        kind: [
            [length for length, frame in zip(own, of_example, strict=True) if frame == (kind == "video")]
            for own, of_example in zip(runs, frames, strict=True)
        ]
        for kind in ("image", "video")
    }
    return replace(qwen_vl.media_layout(replace(batch, placeholders=kinds)), video_runs=frames)


def video_runs(batch: ProcessedBatch) -> list[list[bool]]:
    """For each example, which of its runs of image placeholders are between the words that begin and end a video."""
    config, tokens = batch.config, batch.outputs["input_ids"]
    begun, ended = (
        (tokens == token).cumsum(dim=1) for token in (config.video_start_token_id, config.video_end_token_id)
    )
    found = []
    for row, inside in zip((tokens == config.image_token_id).tolist(), (begun > ended).tolist(), strict=True):
        places = groupby(zip(row, inside, strict=True))
        found.append([in_video for (is_image, in_video), _ in places if is_image])
    return found
