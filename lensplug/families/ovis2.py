"""Ovis2: the image squeezed whole, then tile by tile; 2 x 2 patches to a position.

Indicators stand between the views (`<IMG_GRID>`, `<IMG_COL>`, `<IMG_ROW>`): their embeddings are the model's own, the
same for every image, so that they are words, and an image has several runs of placeholders. An image that fits one
tile is seen once.

The size of the original image is not among the processor's outputs: where it is not known (`lens.encode` without
`images=`), an image has no grid.

Follows `Ovis2ImageProcessor`, `Ovis2VisionModel` and `Ovis2Model` of transformers 5.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.ovis2.image_processing_ovis2 import get_min_tile_covering_grid, get_optimal_tiled_canvas

from lensplug.families import MediaLayout, ProcessedBatch, by_image_size, setting
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import squeezed


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image in the batch."""
    settings = batch.image_processor
    if settings is None:
        return MediaLayout()
    return by_image_size(batch, lambda height, width: image_grid(batch.config, settings, height, width))


def image_grid(config: Any, settings: Any, height: int, width: int) -> ImageGrid | None:
    """The positions of an image of `height` x `width` pixels.

    Args:
        config: The full model's configuration.
        settings: Its image processor.
        height: Height of the original image.
        width: Width of the original image.

    Returns:
        None for settings that do not squeeze views to the size that the encoder takes.
    """
    vision = config.vision_config
    view_px, merged = vision.image_size, vision.hidden_stride
    patches = view_px // vision.patch_size
    if setting(settings.size, "height") != view_px or settings.do_center_crop or not settings.do_resize:
        return None
    geometry = {"view_px": view_px, "side": -(-patches // merged), "cell_px": vision.patch_size * merged}
    rows, columns = tiles(settings, view_px, height, width)
    views = [squeezed(height, width, **geometry)]
    if rows * columns > 1:
        views.append(squeezed(height, width, rows=rows, columns=columns, **geometry))
    placed = torch.cat(views)
    view = torch.arange(len(placed) // len(views[0])).repeat_interleave(len(views[0]))
    return ImageGrid(placed.float(), view, torch.zeros(len(view), dtype=torch.bool), width, height)


def tiles(settings: Any, view_px: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tiles; one if the image is not cut."""
    if not (settings.crop_to_patches and settings.max_patches > 1):
        return 1, 1
    if settings.use_covering_area_grid:
        columns, rows = get_min_tile_covering_grid(
            (height, width), target_patch_size=view_px, max_image_tiles=settings.max_patches, covering_threshold=0.9
        )
    else:
        columns, rows = get_optimal_tiled_canvas(
            (height, width), (view_px, view_px), settings.min_patches, settings.max_patches
        )
    return rows, columns
