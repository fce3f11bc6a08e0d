"""What differs from one Hugging Face family to the next, one small file each, imported when asked for.

A family without a file works everywhere; its images have no geometry (`image_grid` gives None).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from lensplug.geometry import ImageGrid

FAMILIES = {"llava_onevision": "lensplug.families.llava_onevision"}
"""`config.model_type` -> the module that knows its geometry."""


@dataclass(frozen=True)
class MediaLayout:
    """The media of a batch, as far as the family knows them."""

    lengths: dict[str, list[list[int]]] = field(default_factory=dict)
    """Modality -> for each example, the number of positions of each medium."""
    grids: dict[tuple[int, int], ImageGrid] = field(default_factory=dict)
    """(example, media_index) -> the geometry of that image."""


def media_layout(
    config: Any, processor_outputs: Mapping[str, Any], placeholders: Mapping[str, list[int]]
) -> MediaLayout:
    """The layout of the media in `processor_outputs`; empty for a family that has no file.

    Args:
        config: The full model's configuration.
        processor_outputs: What its processor returned.
        placeholders: Modality -> the number of placeholder tokens in each example.
    """
    module = FAMILIES.get(config.model_type)
    if module is None:
        return MediaLayout()
    layout: MediaLayout = import_module(module).media_layout(config, processor_outputs, placeholders)
    return layout
