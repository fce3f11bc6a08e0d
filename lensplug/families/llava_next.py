"""LLaVA-NeXT and LLaVA-NeXT-Video: AnyRes tiles, for each image of a prompt, and never interpolated.

The frames of a video are scaled and cropped as LLaVA's images are, and their patches pooled (2 x 2) to positions.

Follows `LlavaNextModel.pack_image_features`, `LlavaNextImageProcessor` and `LlavaNextVideoPooler` of transformers 5.
"""

from __future__ import annotations

from lensplug.families import MediaLayout, ProcessedBatch, shared_out
from lensplug.families.anyres import anyres_grid
from lensplug.families.llava import with_videos


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image and video in the batch."""
    sizes, layout = batch.outputs.get("image_sizes"), MediaLayout()
    if sizes is not None and "image" in batch.placeholders:
        lengths, grids = shared_out(
            batch.placeholders["image"], [anyres_grid(batch.config, int(height), int(width)) for height, width in sizes]
        )
        layout = MediaLayout({"image": lengths}, grids)
    return with_videos(layout, batch, pooled=getattr(batch.config, "spatial_pool_stride", 1))
