"""GOT-OCR 2: the image squeezed to a view, or to tiles and a view; two convolutions with a stride of two behind it.

The encoder (SAM's) keeps the grid of its patches, blends each with its neighbours (3 x 3), and two convolutions make
every fourth patch along each side a position. Its middle is on that patch, so that the cells of positions begin two
patches before it: the first is smaller than others, the last larger. A position sees four patches to each side of its
middle, half of its neighbours' cells; a change moves it most where its own cell is.

Tiles are cut by a setting of the processor's call (`crop_to_patches`), which cannot be seen afterwards: it is told by
the number of positions. The size of the original image is not among the outputs: where it is not known (`lens.encode`
without `images=`), an image has no grid.

Follows `GotOcr2ImageProcessor`, `GotOcr2VisionNeck` and `GotOcr2MultiModalProjector` of transformers 5.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from lensplug.families import MediaLayout, ProcessedBatch, by_image_size, setting
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import strided

STRIDE = 4
"""Patches from a position to the next."""


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image in the batch."""
    settings = batch.image_processor
    if settings is None:
        return MediaLayout()
    for cut in (False, True):
        layout = by_image_size(batch, partial(image_grid, batch.config, settings, cut=cut))
        if layout.grids:
            return layout
    return MediaLayout()


def image_grid(config: Any, settings: Any, height: int, width: int, *, cut: bool = False) -> ImageGrid | None:
    """The positions of an image of `height` x `width` pixels.

    Args:
        config: The full model's configuration.
        settings: Its image processor.
        height: Height of the original image.
        width: Width of the original image.
        cut: Whether the image is cut into tiles.

    Returns:
        None for settings that do not squeeze views to the size that the encoder takes.
    """
    view_px = config.vision_config.image_size
    if setting(settings.size, "height") != view_px or not settings.do_resize:
        return None
    geometry = {"view_px": view_px, "unit_px": config.vision_config.patch_size, "stride": STRIDE}
    views, order = [strided(height, width, **geometry)], [0]
    if cut:
        columns, rows = get_optimal_tiled_canvas(
            (height, width), (view_px, view_px), settings.min_patches, settings.max_patches
        )
        if rows * columns > 1:
            views.insert(0, strided(height, width, rows=rows, columns=columns, **geometry))
            order = [*range(1, rows * columns + 1), 0]
    view = torch.tensor(order).repeat_interleave(len(views[-1]))
    return ImageGrid(torch.cat(views).float(), view, torch.zeros(len(view), dtype=torch.bool), width, height)
