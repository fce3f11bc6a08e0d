"""Gemma 3: each image squeezed to a square; with pan and scan, parts of a long one are seen again, enlarged.

The 64 x 64 patches of a view are averaged to 16 x 16 positions. Pan and scan (where a call of the processor asks for
it) cuts an image that is much wider than high, or higher than wide, into pieces of one size, of which the last can be
smaller: they come behind the whole image, each squeezed to a square of its own. Text stands between the views, so that
an image has several runs of placeholders.

The size of the original image is not among the processor's outputs: where it is not known (`lens.encode` without
`images=`), an image has no grid. How many pieces it was cut into is told by the number of positions; of several images
in one prompt, by the limits that the processor has by itself.

Follows `Gemma3MultiModalProjector` and `Gemma3ImageProcessor` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lensplug.families import MediaLayout, ProcessedBatch, by_example
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import whole

LIMITS = {
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
"""What the processor of transformers passes, whatever its image processor holds."""


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image in the batch."""
    pixels, view_px = batch.outputs.get("pixel_values"), batch.config.vision_config.image_size
    side = round(batch.config.mm_tokens_per_image**0.5)
    if pixels is None or tuple(pixels.shape[-2:]) != (view_px, view_px) or not batch.media.images:
        return MediaLayout()
    images: list[list[ImageGrid]] = []
    for sizes, runs in zip(batch.media.image_sizes, batch.placeholders["image"], strict=True):
        counts = piece_counts(batch.image_processor, sizes, views=sum(runs) // side**2)
        grids = [image_grid(*size, side, count) for size, count in zip(sizes, counts or (), strict=False)]
        known = [grid for grid in grids if grid is not None]
        if len(known) != len(sizes) or sum(map(len, known)) != sum(runs):
            return MediaLayout()
        images.append(known)
    lengths = [list(map(len, of_example)) for of_example in images]
    return MediaLayout({"image": lengths}, by_example(lengths, images))


def piece_counts(image_processor: Any, sizes: Sequence[tuple[int, int]], views: int) -> list[int] | None:
    """Into how many pieces each image of a prompt was cut; None where that is not known.

    Args:
        image_processor: Knows how many pieces it cuts.
        sizes: Height and width of each image.
        views: How many views of them there are.
    """
    if views == len(sizes):
        return [0] * len(sizes)
    if len(sizes) == 1:
        return [views - 1]
    if not hasattr(image_processor, "pan_and_scan_batched"):
        return None
    counts = [len(image_processor.pan_and_scan_batched(torch.empty(1, 1).expand(size), **LIMITS)) for size in sizes]
    return counts if sum(counts) + len(sizes) == views else None


def image_grid(height: int, width: int, side: int, pieces: int = 0) -> ImageGrid | None:
    """The positions of an image of `height` x `width` pixels.

    Args:
        height: Height of the original image.
        width: Width of the original image.
        side: Positions along each side of a view.
        pieces: How many parts of it are seen again.

    Returns:
        None for pieces of no size.
    """
    along = max(width, height)
    size = -(-along // max(pieces, 1))
    if pieces and size * (pieces - 1) >= along:
        return None
    views = [whole(height, width, rows=side, columns=side).boxes]
    for start in range(0, size * pieces, size):
        length = min(size, along - start)
        if width >= height:
            part, corner = whole(height, length, rows=side, columns=side), [start, 0, start, 0]
        else:
            part, corner = whole(length, width, rows=side, columns=side), [0, start, 0, start]
        views.append(part.boxes + torch.tensor(corner))
    view = torch.arange(len(views)).repeat_interleave(side**2)
    return ImageGrid(torch.cat(views), view, torch.zeros(len(view), dtype=torch.bool), width, height)
