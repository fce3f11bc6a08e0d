"""How far vectors of a model move when one part of a medium at a time is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.locating.changed_media import Axis

Moved = Float[Tensor, "token part"]
Reader = Callable[[list[Any]], Float[Tensor, "run token d_model"]]
"""From versions of a medium to the vectors that the model makes of each."""


def movements(
    vectors_of: Reader,
    medium: Any,
    axes: Sequence[Axis],
    how: str,
    *,
    batch: int,
    progress: Callable[[str], None],
) -> list[Moved]:
    """How far each vector moves, for every part of every side.

    Args:
        vectors_of: Runs the model's processor and encoder.
        medium: As it is.
        axes: Its sides.
        how: Said by `progress`: in which way the encoder runs.
        batch: How many versions are run at once.
        progress: Called with a few words before each batch.
    """
    before = vectors_of([medium])
    by_axis = []
    for axis in axes:
        by_part = []
        for first in range(0, len(axis), batch):
            progress(f"{how}: {axis.name}, {first + 1} of {len(axis)}")
            changed = [axis.changed(part) for part in range(first, min(first + batch, len(axis)))]
            by_part.append((vectors_of(changed) - before).norm(dim=-1))
        by_axis.append(torch.cat(by_part).T)
    return by_axis
