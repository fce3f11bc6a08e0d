"""Mistral 3 and LLaVA on Pixtral's encoder: an image scaled to whole cells, its proportions nearly kept, row by row.

An image larger than the longest edge is scaled down, none is enlarged. A word that ends each row stands between the
positions (`[IMG_BREAK]`): it is text, not a placeholder, and so an image has as many runs of placeholders as rows.
Mistral 3 merges neighbouring patches (2 x 2) to one position.

The size that an image is scaled to is among the processor's outputs. The size of the original is not: where it is not
known (`lens.encode` without `images=`), it is known which positions belong to an image, and it has no grid.

Follows `PixtralImageProcessor` and `Mistral3PatchMerger` of transformers 5.
"""

from __future__ import annotations

from lensplug.families import MediaLayout, ProcessedBatch, by_example, shared_out
from lensplug.geometry.image_cells import whole


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image in the batch."""
    scaled = batch.outputs.get("image_sizes")
    if scaled is None:
        return MediaLayout()
    cell_px = batch.config.vision_config.patch_size * getattr(batch.config, "spatial_merge_size", 1)
    shapes = [(int(height) // cell_px, int(width) // cell_px) for height, width in scaled]
    lengths, places = shared_out(batch.placeholders["image"], [range(rows * columns) for rows, columns in shapes])
    shape_of = dict(zip(places, shapes, strict=False))  # an image without positions is in no place
    sizes = by_example(lengths, batch.media.image_sizes)
    grids = {place: whole(*size, rows=shape_of[place][0], columns=shape_of[place][1]) for place, size in sizes.items()}
    return MediaLayout({"image": lengths}, grids)
