"""Idefics3 and SmolVLM: the image squeezed to a multiple of a view's size, tile by tile, then squeezed whole.

Text tokens separate the tiles (their row and column), so that an image has several runs of placeholders.
Neighbouring patches (2 x 2) are merged to one position. The size of the original image is not among the
processor's outputs: where it is not known (`lens.encode` without `images=`), an image has no grid, and in a
prompt of several runs it is not known which image a position belongs to. The frames of a video (SmolVLM) are in the
prompt as images, squeezed whole, with the time of each between them (`lensplug.families.frames`).

Follows `Idefics3Connector.pixel_shuffle`, `Idefics3ImageProcessor` and `SmolVLMVideoProcessor` of transformers 5.
"""

from __future__ import annotations

from typing import Any

from lensplug.families import MediaLayout, ProcessedBatch, by_image_size, setting
from lensplug.families.frames import Runs
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import tiles_and_whole
from lensplug.media import Video


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image and video in the batch."""
    settings = batch.image_processor
    if settings is None:
        return MediaLayout()
    runs = Runs.of(batch)
    images = by_image_size(runs.images(batch), lambda height, width: image_grid(batch.config, settings, height, width))
    return runs.with_videos(images, batch, lambda video: view_grid(batch.config, batch.video_processor, video))


def view_grid(config: Any, settings: Any, video: Video) -> ImageGrid | None:
    """The positions of a frame, squeezed into one view."""
    size = None if settings is None else setting(getattr(settings, "max_image_size", None), "longest_edge")
    if size is None:
        return None
    patch, merged = config.vision_config.patch_size, config.scale_factor
    geometry = {"view_px": size, "side": size // patch // merged, "cell_px": patch * merged}
    return tiles_and_whole(video.height, video.width, rows=0, columns=0, **geometry)


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
