"""Numbers of each example in rows that all examples share: what statistics over a data set are taken of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.errors import LensplugError


@dataclass(frozen=True)
class OverExamples:
    """Some numbers of each example."""

    labels: Mapping[str, Sequence[Any]]
    """Column ("layer", "head") -> an entry for each row; none where there is a single row."""
    values: Mapping[str, Float[Tensor, "example row"]]
    """Name of a number ("mass") -> its values; NaN where an example has none."""

    def number(self, name: str | None) -> tuple[str, Float[Tensor, "example row"]]:
        """A number by its name; the first by default.

        Raises:
            LensplugError: If there is none of that name.
        """
        chosen = next(iter(self.values)) if name is None else name
        if chosen not in self.values:
            raise LensplugError(f"{chosen!r} is not measured of each example: there are {', '.join(self.values)}.")
        return chosen, self.values[chosen]


def grid(**axes: Sequence[Any]) -> dict[str, list[Any]]:
    """Labels of the rows of flattened axes, the last of which varies fastest."""
    indices = torch.meshgrid(*(torch.arange(len(entries)) for entries in axes.values()), indexing="ij")
    return {
        name: [entries[index] for index in of_axis.flatten().tolist()]
        for (name, entries), of_axis in zip(axes.items(), indices, strict=True)
    }
