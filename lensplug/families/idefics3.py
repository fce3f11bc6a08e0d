"""Idefics3: the image squeezed to a multiple of a view's size, tile by tile, then squeezed whole.

Text tokens separate the tiles (their row and column), so that an image has several runs of placeholders.
Neighbouring patches (2 x 2) are merged to one position. The size of the original image is not among the
processor's outputs: where it is not known (`lens.encode` without `images=`), an image has no grid, and in a
prompt of several runs it is not known which image a position belongs to.

Follows `Idefics3Connector.pixel_shuffle` and `Idefics3ImageProcessor` of transformers 5.
"""

from __future__ import annotations

from typing import Any

from lensplug.families import MediaLayout, ProcessedBatch, by_image_size, setting
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import tiles_and_whole


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image in the batch."""
    settings = batch.image_processor
    if settings is None:
        return MediaLayout()
    return by_image_size(batch, lambda height, width: image_grid(batch.config, settings, height, width))


def image_grid(config: Any, settings: Any, height: int, width: int) -> ImageGrid:
    """The positions of an image of `height` x `width` pixels.

    Args:
        config: The full model's configuration.
        settings: Its image processor.
        height: Height of the original image.
        width: Width of the original image.
    """
    view_px = setting(settings.max_image_size, "longest_edge") or config.vision_config.image_size
    patch, merged = config.vision_config.patch_size, config.scale_factor
    _, rows, columns = settings.get_number_of_image_patches(height, width, {})
    return tiles_and_whole(
        height,
        width,
        view_px=view_px,
        side=view_px // patch // merged,
        cell_px=patch * merged,
        rows=rows,
        columns=columns,
    )
