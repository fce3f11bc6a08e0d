"""Janus, DeepSeek-VL and its hybrid: one view, the image scaled to its longest edge and padded to a square.

The image is in the middle of the square; a very narrow one is widened to a least size. The hybrid pads the larger of
its two views, and scales that to the other: a position joins the patches at one place of both.

The size of the original is not among the processor's outputs: where it is not known (`lens.encode` without `images=`),
an image has no grid. Settings given in a call of the processor cannot be seen afterwards: those of the lens's processor
count.

Follows the image processors of Janus, DeepSeek-VL and DeepSeek-VL hybrid in transformers 5.
"""

from __future__ import annotations

from typing import Any

import torch

from lensplug.families import MediaLayout, ProcessedBatch, by_example, setting
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import boxes, cells


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image in the batch."""
    vision, pixels = batch.config.vision_config, batch.outputs.get("pixel_values")
    side = vision.image_size // vision.patch_size
    runs = batch.placeholders["image"]
    if pixels is None or sum(map(sum, runs)) != len(pixels) * side**2:
        return MediaLayout()
    lengths = [[side**2] * (sum(own) // side**2) for own in runs]
    settings = batch.image_processor
    if settings is None or tuple(pixels.shape[-2:]) != (vision.image_size, vision.image_size):
        return MediaLayout({"image": lengths})
    images = [[image_grid(settings, side, *size) for size in sizes] for sizes in batch.media.image_sizes]
    return MediaLayout({"image": lengths}, by_example(lengths, images))


def image_grid(settings: Any, side: int, height: int, width: int) -> ImageGrid | None:
    """The positions of an image of `height` x `width` pixels.

    Args:
        settings: The image processor.
        side: Positions along each side of the view.
        height: Height of the original image.
        width: Width of the original image.

    Returns:
        None for settings that make something else of an image than a padded square.
    """
    square = setting(getattr(settings, "high_res_size", None) or settings.size, "height")
    if square is None or not (settings.do_resize and getattr(settings, "do_pad", True)):
        return None
    x, y = (_along(settings, side, square, edge, max(height, width)) for edge in (width, height))
    placed = boxes(x, y)
    none = torch.zeros(len(placed), dtype=torch.long)
    return ImageGrid(placed.float(), none, none.bool(), width, height)


def _along(settings: Any, side: int, square: int, edge: int, longest: int) -> torch.Tensor:
    """Start and end of each position along an edge of the image."""
    scaled = max(round(edge * (square / longest)), settings.min_size)
    before = (square - scaled) // 2
    scale = edge / scaled
    return cells(side, 1, scale=square / side * scale, limit=edge, origin=-before * scale)
