"""LLaVA-OneVision: AnyRes tiles for a single image, a base view for each of several, pooled frames of a video.

Several images in one prompt have their base view only, padded to a square and not squeezed, and one
newline. The frames of a video are squeezed into one view each, their 27 x 27 patches interpolated to
14 x 14 positions; one newline ends the video.

Follows `LlavaOnevisionModel` and the image and video processors of transformers 5.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lensplug.families import MediaLayout, ProcessedBatch, shared_out
from lensplug.families.anyres import anyres_grid, interpolated_cells
from lensplug.geometry import ImageGrid, VideoGrid
from lensplug.geometry.image_cells import boxes, cells
from lensplug.media import Video


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image and video in the batch."""
    lengths: dict[str, list[list[int]]] = {}
    grids: dict[tuple[int, int], ImageGrid] = {}
    video_grids: dict[tuple[int, int], VideoGrid] = {}
    sizes = batch.outputs.get("image_sizes")
    if sizes is not None and "image" in batch.placeholders:
        counts = [int(count) for count in batch.outputs.get("batch_num_images", [1] * len(sizes))]
        is_single = [count == 1 for count in counts for _ in range(count)]
        images = [
            image_grid(batch.config, int(h), int(w), alone=single)
            for (h, w), single in zip(sizes, is_single, strict=True)
        ]
        lengths["image"], grids = shared_out(batch.placeholders["image"], images)
    if "video" in batch.placeholders:
        frames = [len(video) for video in batch.outputs["pixel_values_videos"]]
        positions = [range(count * _pooled(batch.config) ** 2 + 1) for count in frames]
        lengths["video"], _ = shared_out(batch.placeholders["video"], positions)
        video_grids = {
            (example, index): video_grid(batch.config, video)
            for example, videos in enumerate(batch.media.videos)
            for index, video in enumerate(videos)
        }
    return MediaLayout(lengths, grids, video_grids)


def image_grid(config: Any, height: int, width: int, *, alone: bool = True) -> ImageGrid:
    """The positions of an image of `height` x `width` pixels.

    Args:
        config: The full model's configuration.
        height: Height of the original image.
        width: Width of the original image.
        alone: Whether it is the only image of its prompt; else it has no tiles.
    """
    if alone:
        return anyres_grid(config, height, width, most=int(config.vision_aspect_ratio.removeprefix("anyres_max_")))
    view_px, patch = config.vision_config.image_size, config.vision_config.patch_size
    side, square = view_px // patch, max(width, height)
    # Padded to a square, with the image in its middle.
    x = cells(side, patch, scale=square / view_px, limit=width, origin=float(-((square - width) // 2)))
    y = cells(side, patch, scale=square / view_px, limit=height, origin=float(-((square - height) // 2)))
    placed = torch.cat([boxes(x, y), torch.full((1, 4), math.nan)])
    newline = torch.zeros(len(placed), dtype=torch.bool)
    newline[-1] = True
    return ImageGrid(placed.float(), torch.zeros(len(placed), dtype=torch.long), newline, width, height)


def video_grid(config: Any, video: Video) -> VideoGrid:
    """The positions of a video."""
    view_px, patch = config.vision_config.image_size, config.vision_config.patch_size
    side, pooled = view_px // patch, _pooled(config)
    edges, _ = interpolated_cells(side, 0, pooled, side, view_px, patch)
    frame = boxes(edges * video.width / view_px, edges * video.height / view_px)
    newline = torch.zeros(len(video) * len(frame) + 1, dtype=torch.bool)
    newline[-1] = True
    placed = torch.cat([frame.repeat(len(video), 1), torch.full((1, 4), math.nan)])
    index = torch.arange(len(video)).repeat_interleave(len(frame))
    return VideoGrid(
        placed.float(), torch.cat([index, torch.tensor([-1])]), newline, video.width, video.height, video.times_s
    )


def _pooled(config: Any) -> int:
    """Positions along a side of a frame."""
    side: int = config.vision_config.image_size // config.vision_config.patch_size
    return math.ceil(side / 2)
