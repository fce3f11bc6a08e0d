"""Cohere 2 Vision and Aya Vision: the image squeezed to its tiles, tile by tile, then squeezed whole.

Neighbouring patches (2 x 2) are merged to one position. Words stand between the views, so that an image has a run of
placeholders for each; one that fits one tile is seen once. The two choose the tiles by rules of their own.

The size of the original image is not among the processor's outputs: where it is not known (`lens.encode` without
`images=`), an image has no grid.

Follows the image processors and projectors of both in transformers 5.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers.models.cohere2_vision import image_processing_cohere2_vision
from transformers.models.got_ocr2 import image_processing_got_ocr2

from lensplug.families import MediaLayout, ProcessedBatch, by_image_size, setting
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import tiles_and_whole

CANVAS = {
    "aya_vision": image_processing_got_ocr2.get_optimal_tiled_canvas,
    "cohere2_vision": image_processing_cohere2_vision.get_optimal_tiled_canvas,
}
"""`config.model_type` -> how many columns and rows of tiles an image is cut into."""


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image in the batch."""
    settings = batch.image_processor
    if settings is None:
        return MediaLayout()
    for cut in (True, False):  # which a call of the processor can set
        layout = by_image_size(batch, partial(image_grid, batch.config, settings, cut=cut))
        if layout.grids:
            return layout
    return MediaLayout()


def image_grid(config: Any, settings: Any, height: int, width: int, *, cut: bool = True) -> ImageGrid | None:
    """The positions of an image of `height` x `width` pixels.

    Args:
        config: The full model's configuration.
        settings: Its image processor.
        height: Height of the original image.
        width: Width of the original image.
        cut: Whether images are cut into tiles.

    Returns:
        None for settings that do not squeeze views to the size that the encoder takes.
    """
    view_px, cell_px = config.vision_config.image_size, config.vision_config.patch_size * config.downsample_factor
    if setting(settings.size, "height") != view_px or not settings.do_resize:
        return None
    columns = rows = 0
    if cut:
        canvas = CANVAS[config.model_type]
        columns, rows = canvas((height, width), (view_px, view_px), settings.min_patches, settings.max_patches)
        columns, rows = (0, 0) if columns * rows == 1 else (columns, rows)
    return tiles_and_whole(
        height, width, view_px=view_px, side=view_px // cell_px, cell_px=cell_px, rows=rows, columns=columns
    )
