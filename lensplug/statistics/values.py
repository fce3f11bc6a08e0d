"""Values of examples as they are passed: a table of numbers, and a name for each example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.validation.arguments import described

Values = np.ndarray | Tensor | Sequence[Any]
"""`[example row]`, NaN where an example has no value: an array, a tensor or nested lists."""


def as_table(values: Values, name: str = "values") -> Float64[np.ndarray, "example row"]:
    """The values in double precision.

    Raises:
        LensplugError: If they are no table of numbers, or one of them is infinite.
    """
    expected = "expected numbers [example row], with NaN where an example has none"
    try:
        plain = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
        table = np.asarray(plain, dtype=np.float64)
    except (TypeError, ValueError) as error:  # texts, rows of several lengths
        raise LensplugError(f"{name} is {described(values)}, {expected}.") from error
    if table.ndim != 2:
        raise LensplugError(f"{name} has the shape {list(table.shape)}, {expected}.")
    infinite = np.isinf(table)
    if infinite.any():
        example, row = np.argwhere(infinite)[0]
        raise LensplugError(
            f"{name} holds infinity ({int(infinite.sum())} of {table.size} numbers, the first in example {example},"
            f" row {row}): its mean would be infinite; set it to NaN to leave it out."
        )
    return table


def refuse_other_count(names: Sequence[str], n_examples: int, what: str) -> None:
    """Refuse names that are not one for each example.

    Raises:
        LensplugError: Then.
    """
    if len(names) != n_examples:
        raise LensplugError(f"{what} has {len(names)} names for {n_examples} examples: give one for each.")


def refuse_other_rows(rows: int, known_rows: int) -> None:
    """Refuse values with another number of rows than those before.

    Raises:
        LensplugError: Then.
    """
    if rows != known_rows:
        raise LensplugError(
            f"values with {rows} rows are added to values with {known_rows}: a row is one head or layer in all"
            " examples; fill NaN where one is absent."
        )


def examples_by_name(names: Sequence[str]) -> dict[str, Int64[np.ndarray, " example"]]:
    """Name -> the indices of its examples, in the order in which the names first occur."""
    indices: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        indices.setdefault(name, []).append(index)
    return {name: np.array(found, dtype=np.int64) for name, found in indices.items()}


def sums_by_name(
    table: Float64[np.ndarray, "example row"], names: Sequence[str]
) -> tuple[list[str], Float64[np.ndarray, "name row"], Float64[np.ndarray, "name row"]]:
    """The names in the order in which they occur; for each, the sum of its values and how many there are."""
    by_name = examples_by_name(names)
    if not by_name:
        return [], table[:0], table[:0]
    order = np.concatenate(list(by_name.values()))
    starts = np.cumsum([0, *map(len, by_name.values())])[:-1]
    sums = np.add.reduceat(np.nan_to_num(table[order], nan=0.0), starts, axis=0)
    counts = np.add.reduceat(~np.isnan(table[order]), starts, axis=0, dtype=np.float64)
    return list(by_name), sums, counts
