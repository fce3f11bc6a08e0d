"""FastVLM: one view of each image, cropped, padded or squeezed to a square, behind an encoder of convolutions.

Six convolutions with a stride of two make a position of every 64th pixel along each side, and its middle is on that
pixel. The box of a position is the square around its middle, and the edges of boxes are half-way to the next: it says
around what a position is, not what it sees. Between the strided convolutions are others, of 3 x 3 and 7 x 7, so many
that in the large model a position sees most of the view before any attention, what is far away the less the better
the encoder keeps things in place; `lens.locate` measures how well.

The size of the original image is not among the processor's outputs: where it is not known (`lens.encode` without
`images=`), an image has no grid. Settings given in a call of the processor cannot be seen afterwards: those of the
lens's processor count.

Follows `FastVlmModel.get_image_features` of transformers 5 and `FastVit` of timm. Another encoder than FastViT has no
grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lensplug.families import MediaLayout, ProcessedBatch, by_example
from lensplug.families.llava import window
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import boxes, strided_cells

STRIDE = 64
"""Pixels of the view from a position to the next."""


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image in the batch."""
    pixels = batch.outputs.get("pixel_values")
    if not isinstance(pixels, Tensor) or not batch.config.vision_config.architecture.startswith("fastvit"):
        return MediaLayout()
    height, view_px = pixels.shape[-2:]
    each = (view_px // STRIDE) ** 2
    runs = batch.placeholders["image"]
    if height != view_px or view_px % STRIDE or sum(map(sum, runs)) != len(pixels) * each:
        return MediaLayout()
    lengths = [[each] * (sum(own) // each) for own in runs]
    settings = batch.image_processor
    if settings is None:
        return MediaLayout({"image": lengths})
    images = [[image_grid(settings, view_px, *size) for size in sizes] for sizes in batch.media.image_sizes]
    return MediaLayout({"image": lengths}, by_example(lengths, images))


def image_grid(settings: Any, view_px: int, height: int, width: int) -> ImageGrid | None:
    """The positions of an image of `height` x `width` pixels.

    Args:
        settings: Its image processor.
        view_px: Height and width of the view.
        height: Height of the original image.
        width: Width of the original image.

    Returns:
        None for settings that make something else of an image than a square.
    """
    seen = window(settings, view_px, height, width)
    if seen is None:
        return None
    cells = strided_cells(view_px, unit_px=1, stride=STRIDE)
    x, y = (
        (origin + cells * scale).clamp(0, limit) for (origin, scale), limit in zip(seen, (width, height), strict=True)
    )
    placed = boxes(x, y)
    none = torch.zeros(len(placed), dtype=torch.long)
    return ImageGrid(placed.float(), none, none.bool(), width, height)
