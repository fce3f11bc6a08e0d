"""LLaVA-NeXT: AnyRes tiles, for each image of a prompt, and never interpolated.

Follows `LlavaNextModel.pack_image_features` and `LlavaNextImageProcessor` of transformers 5.
"""

from __future__ import annotations

from lensplug.families import MediaLayout, ProcessedBatch, shared_out
from lensplug.families.anyres import anyres_grid


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image in the batch."""
    sizes = batch.outputs.get("image_sizes")
    if sizes is None:
        return MediaLayout()
    lengths, grids = shared_out(
        batch.placeholders["image"], [anyres_grid(batch.config, int(height), int(width)) for height, width in sizes]
    )
    return MediaLayout({"image": lengths}, grids)
