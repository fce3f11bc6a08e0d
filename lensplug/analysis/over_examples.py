"""Numbers of each example in rows that all examples share: what statistics over a data set are taken of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.errors import LensplugError


@dataclass(frozen=True)
class OverExamples:
    """Some numbers of each example."""

    labels: Mapping[str, Sequence[Any]]
    """Column ("layer", "head") -> an entry for each row; none where there is a single row."""
    values: Mapping[str, Float[Tensor, "example row"]]
    """Name of a number ("mass") -> its values; NaN where an example has none."""
    weights: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Label -> the weight of each row where rows that differ in it are averaged; all count alike by default."""

    def number(self, name: str | None) -> tuple[str, Float[Tensor, "example row"]]:
        """A number by its name; the first by default.

        Raises:
            LensplugError: If there is none of that name.
        """
        chosen = next(iter(self.values)) if name is None else name
        if chosen not in self.values:
            raise LensplugError(f"{chosen!r} is not measured of each example: there are {', '.join(self.values)}.")
        return chosen, self.values[chosen]

    def averaged(self, over: str | None) -> OverExamples:
        """With rows averaged in each example that differ in one label alone: over "head", a number for each layer.

        Args:
            over: The label that goes; None changes nothing.

        Raises:
            LensplugError: If there is no such label.
        """
        if over is None:
            return self
        if over not in self.labels:
            raise LensplugError(f"there is no label {over!r} to average over, but {', '.join(self.labels) or 'none'}.")
        others = {name: entries for name, entries in self.labels.items() if name != over}
        rows = list(zip(*others.values(), strict=True)) or [()] * len(self.labels[over])
        kept = list(dict.fromkeys(rows))
        place = {row: index for index, row in enumerate(kept)}
        where = torch.tensor([place[row] for row in rows])
        weights = torch.tensor(self.weights.get(over, [1.0] * len(rows)), dtype=torch.float64)
        return OverExamples(
            {name: [row[index] for row in kept] for index, name in enumerate(others)},
            {name: _means(values, weights, where, len(kept)) for name, values in self.values.items()},
            {
                name: [of_label[rows.index(row)] for row in kept]
                for name, of_label in self.weights.items()
                if name != over
            },
        )


def _means(
    values: Float[Tensor, "example row"], weights: Float[Tensor, " row"], where: Int[Tensor, " row"], count: int
) -> Float[Tensor, "example other"]:
    """The weighted mean of the rows that go to each place, NaN left out."""
    wide = values.double()
    zeros = wide.new_zeros(len(wide), count)
    total = zeros.index_add(1, where, (~wide.isnan()).double() * weights)
    return zeros.index_add(1, where, wide.nan_to_num(0.0) * weights) / total


def grid(**axes: Sequence[Any]) -> dict[str, list[Any]]:
    """Labels of the rows of flattened axes, the last of which varies fastest."""
    indices = torch.meshgrid(*(torch.arange(len(entries)) for entries in axes.values()), indexing="ij")
    return {
        name: [entries[index] for index in of_axis.flatten().tolist()]
        for (name, entries), of_axis in zip(axes.items(), indices, strict=True)
    }
