"""InternVL: the image squeezed to the tiles that fit its proportions best, tile by tile, then squeezed whole.

Neighbouring patches (2 x 2) are merged to one position. An image that fits one tile is seen once. The size
of the original image is not among the processor's outputs: where it is not known (`lens.encode` without
`images=`), an image has no grid. The frames of a video are in the prompt as images, one view each, with words
between them (`lensplug.families.frames`).

Follows `InternVLModel.pixel_shuffle` and `GotOcr2ImageProcessor` of transformers 5.
"""

from __future__ import annotations

from typing import Any

from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from lensplug.families import MediaLayout, ProcessedBatch, by_example
from lensplug.families.frames import Runs
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import tiles_and_whole
from lensplug.media import Video

FRAME = r"Frame\d+:<img>"
"""What the processor writes before a frame."""


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image and video in the batch; a run of placeholders is an image, or a frame."""
    settings, runs = batch.image_processor, Runs.of(batch, FRAME)
    if settings is None:
        return MediaLayout({"image": [list(own) for own in batch.placeholders["image"]]})

    def view(video: Video) -> ImageGrid | None:
        return image_grid(batch.config, settings, video.height, video.width, positions=_side(batch.config) ** 2)

    return runs.with_videos(_of_images(runs.images(batch), settings), batch, view)


def _of_images(batch: ProcessedBatch, settings: Any) -> MediaLayout:
    lengths = [list(own) for own in batch.placeholders["image"]]
    images = [
        [
            image_grid(batch.config, settings, height, width, positions=positions)
            for (height, width), positions in zip(sizes, own_lengths, strict=False)
        ]
        if len(sizes) == len(own_lengths)
        else []
        for sizes, own_lengths in zip(batch.media.image_sizes, lengths, strict=False)
    ]
    return MediaLayout({"image": lengths}, by_example(lengths, images))


def _side(config: Any) -> int:
    """Positions along each side of a view."""
    return int(config.vision_config.image_size[0] // config.vision_config.patch_size[0] * config.downsample_ratio)


def image_grid(config: Any, settings: Any, height: int, width: int, *, positions: int) -> ImageGrid | None:
    """The positions of an image of `height` x `width` pixels.

    Args:
        config: The full model's configuration.
        settings: Its image processor.
        height: Height of the original image.
        width: Width of the original image.
        positions: How many there are; tells whether it was cut into tiles.

    Returns:
        None where the settings would give another number of positions.
    """
    view_px, patch = config.vision_config.image_size[0], config.vision_config.patch_size[0]
    merged = round(1 / config.downsample_ratio)
    side = _side(config)
    columns = rows = 0
    if positions != side**2:
        columns, rows = get_optimal_tiled_canvas(
            (height, width), (view_px, view_px), settings.min_patches, settings.max_patches
        )
    grid = tiles_and_whole(
        height, width, view_px=view_px, side=side, cell_px=patch * merged, rows=rows, columns=columns
    )
    return grid if len(grid) == positions else None
