"""From the intervals that were measured along each side of a medium to its geometry, marked as measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lensplug.geometry import AudioTimeline, ImageGrid, VideoGrid
from lensplug.locating.changed_media import Axis
from lensplug.locating.intervals import Intervals
from lensplug.locating.located import Geometry
from lensplug.locating.measured_grids import base_first, in_rows_and_columns, views_of


def geometry_of(
    medium: Any,
    axes: Sequence[Axis],
    found: Sequence[Intervals],
    is_mixture: Bool[Tensor, " token"],
    view: Int[Tensor, " token"] | None = None,
) -> Geometry:
    """A grid of a picture, a video grid of a video, a timeline of a sound.

    Args:
        medium: What was measured.
        axes: Its sides.
        found: The intervals along each.
        is_mixture: What sees no one place.
        view: Which view of an image each is in, in any order, where that is known; else it is told by the boxes.
    """
    if len(axes) == 1:
        # What nothing moves hears the padding behind the sound.
        start, stop = (side.nan_to_num(medium.duration_s) for side in (found[0].start, found[0].stop))
        return AudioTimeline(start, stop, medium.duration_s, measured=axes[0].resolution)
    y, x = found[:2]
    boxes = torch.stack([x.start, y.start, x.stop, y.stop], dim=1).masked_fill(is_mixture[:, None], torch.nan)
    stripe = (axes[1].resolution, axes[0].resolution)
    none = torch.zeros(len(boxes), dtype=torch.bool)
    if len(axes) == 2:
        view = views_of(boxes) if view is None else base_first(boxes, view)
        aligned = in_rows_and_columns(boxes, view, stripe)
        return ImageGrid(aligned, view, none, medium.width, medium.height, measured=max(stripe))
    first, last = (torch.nan_to_num(side, nan=-1).long() for side in (found[2].start, found[2].stop - 1))
    aligned = in_rows_and_columns(boxes, torch.zeros_like(first), stripe)
    first, last = (frame.masked_fill(aligned.isnan().any(dim=1), -1) for frame in (first, last))
    return VideoGrid(
        aligned, first, none, medium.width, medium.height, medium.times_s, last_frame=last, measured=max(stripe)
    )
