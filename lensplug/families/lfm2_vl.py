"""LFM2-VL: an image scaled to whole cells, its proportions nearly kept; a large one squeezed to tiles first.

The encoder takes patches of any proportions, and neighbours (2 x 2) are merged to one position. A picture of up to
twice the largest size is seen once. A larger one is squeezed to a grid of square tiles, seen tile by tile, and then
whole. Words stand between the views, so that an image has a run of placeholders for each.

The size of the original image is not among the processor's outputs: where it is not known (`lens.encode` without
`images=`), an image has no grid. Settings given in a call of the processor cannot be seen afterwards: those of the
lens's processor count.

Follows `Lfm2VlImageProcessor` and `Lfm2VlModel.get_image_features` of transformers 5.
"""

from __future__ import annotations

from typing import Any

import torch

from lensplug.families import MediaLayout, ProcessedBatch, by_image_size
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import squeezed, whole


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image in the batch."""
    settings = batch.image_processor
    if settings is None:
        return MediaLayout()
    return by_image_size(batch, lambda height, width: image_grid(settings, height, width))


def image_grid(settings: Any, height: int, width: int) -> ImageGrid:
    """The positions of an image of `height` x `width` pixels.

    Args:
        settings: Its image processor.
        height: Height of the original image.
        width: Width of the original image.
    """
    cell_px = settings.encoder_patch_size * settings.downsample_factor
    scaled_w, scaled_h = settings.smart_resize(
        height, width, settings.downsample_factor, settings.min_image_tokens, settings.max_image_tokens,
        settings.encoder_patch_size,
    )  # fmt: skip
    base = whole(height, width, rows=scaled_h // cell_px, columns=scaled_w // cell_px)
    rows, columns = tiles(settings, height, width)
    if rows * columns == 1:
        return base
    side = settings.tile_size // cell_px
    placed = squeezed(
        height, width, view_px=settings.tile_size, side=side, cell_px=cell_px, rows=rows, columns=columns
    ).float()
    view = torch.arange(1, rows * columns + 1).repeat_interleave(side**2)
    if settings.use_thumbnail:
        placed, view = torch.cat([placed, base.boxes]), torch.cat([view, base.view])
    return ImageGrid(placed, view, torch.zeros(len(view), dtype=torch.bool), width, height)


def tiles(settings: Any, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tiles; one of each if the image is not cut."""
    least, most = settings.min_tiles, settings.max_tiles
    large = settings._is_image_too_large(
        height, width, settings.max_image_tokens, settings.encoder_patch_size, settings.downsample_factor,
        settings.max_pixels_tolerance,
    )  # fmt: skip
    if not large or not settings.do_image_splitting or least == most == 1:
        return 1, 1
    columns, rows, *_ = settings._get_grid_layout(height, width, least, most, settings.tile_size)
    return rows, columns
