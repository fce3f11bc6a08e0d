"""LLaVA-NeXT: AnyRes tiles, for each image of a prompt, and never interpolated.

Follows `LlavaNextModel.pack_image_features` and `LlavaNextImageProcessor` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lensplug.families import MediaLayout, shared_out
from lensplug.families.anyres import anyres_grid
from lensplug.media import Media


def media_layout(
    config: Any,
    processor_outputs: Mapping[str, Any],
    placeholders: Mapping[str, Sequence[Sequence[int]]],
    given: Media,
    processor: Any,
) -> MediaLayout:
    """The grid of every image in the batch."""
    sizes = processor_outputs.get("image_sizes")
    if sizes is None:
        return MediaLayout()
    lengths, grids = shared_out(
        placeholders["image"], [anyres_grid(config, int(height), int(width)) for height, width in sizes]
    )
    return MediaLayout({"image": lengths}, grids)
