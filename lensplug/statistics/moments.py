"""Count, mean and variance of each group and row, of examples that come in chunks.

Method (Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", equations 2.1):

1. Of a chunk's examples of a group: n, the mean, and M2 = Σ (x - mean)², in each row over those that have a value.
2. Two parts a and b are one: n = n_a + n_b, d = mean_b - mean_a, mean = mean_a + d n_b / n,
   M2 = M2_a + M2_b + d² n_a n_b / n.
3. Variance is M2 / (n - 1), the standard error of the mean is √(variance / n).

When to use it: for means of data sets that do not fit into memory, and of parts that several processes measured.

When not to use it: the standard error takes examples as independent. Where several are about one picture, it is too
small: `Bootstrap` draws whole clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from lensplug.errors import LensplugError
from lensplug.statistics.values import Values, as_table, examples_by_name, refuse_other_count, refuse_other_rows
from lensplug.validation.arguments import checked


@dataclass(frozen=True)
class _Part:
    count: Int64[np.ndarray, " row"]
    mean: Float64[np.ndarray, " row"]
    """0 where there is no value."""
    squares: Float64[np.ndarray, " row"]
    """M2: the sum of squared differences from the mean."""

    @classmethod
    def measured(cls, table: Float64[np.ndarray, "example row"]) -> _Part:
        present = ~np.isnan(table)
        count = present.sum(axis=0)
        mean = table.sum(axis=0, where=present) / np.maximum(count, 1)
        return cls(count, mean, ((table - mean) ** 2).sum(axis=0, where=present))

    def joined(self, other: _Part) -> _Part:
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        difference = other.mean - self.mean
        return _Part(
            count,
            # Where one part is empty, the mean is the other's to the last bit.
            np.where(self.count == 0, other.mean, self.mean + difference * share),
            self.squares + other.squares + difference**2 * self.count * share,
        )


class Moments:
    """Streamed count, mean, variance and standard error; the state is three numbers for each group and row.

    The order of chunks and of merges changes the last bits alone. A group may occur for the first time in any chunk.

    Attributes below are `[group row]`, groups in the order of `groups`.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._parts: dict[str, _Part] = {}
        self._rows: int | None = None

    @checked
    def add(self, values: Values, groups: Sequence[str]) -> None:
        """Count examples.

        Args:
            values: `[example row]`; NaN where an example has no value for a row.
            groups: The group of each example.

        Raises:
            LensplugError: If the values are no table of finite numbers and NaN, have other rows than those before, or
                there is not one group for each example. Nothing is counted then.
        """
        table = as_table(values)
        refuse_other_count(groups, len(table), "groups")
        self._admit_rows(table.shape[1])
        for group, examples in examples_by_name(groups).items():
            self._join(group, _Part.measured(table[examples]))

    @checked
    def merge(self, other: Moments) -> None:
        """Add what another has counted, of other examples.

        Raises:
            LensplugError: If it has other rows, or is this one.
        """
        if other is self:
            raise LensplugError("moments are merged with themselves, and every example would count twice.")
        if other._rows is not None:
            self._admit_rows(other._rows)
        for group, part in other._parts.items():
            self._join(group, part)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that occurred, in alphabetical order: the same whatever the order of chunks."""
        return tuple(sorted(self._parts))

    @property
    def count(self) -> Int64[np.ndarray, "group row"]:
        """How many examples have a value."""
        return self._stacked([self._parts[group].count for group in self.groups], np.int64)

    @property
    def mean(self) -> Float64[np.ndarray, "group row"]:
        """The mean; NaN where no example has a value."""
        mean = self._stacked([self._parts[group].mean for group in self.groups], np.float64)
        return np.where(self.count > 0, mean, np.nan)

    @property
    def variance(self) -> Float64[np.ndarray, "group row"]:
        """Sample variance, with n - 1; NaN below two examples."""
        squares = self._stacked([self._parts[group].squares for group in self.groups], np.float64)
        count = self.count
        return np.where(count > 1, squares / np.maximum(count - 1, 1), np.nan)

    @property
    def standard_error(self) -> Float64[np.ndarray, "group row"]:
        """Standard error of the mean, of independent examples; NaN below two."""
        error: np.ndarray = np.sqrt(self.variance / np.maximum(self.count, 1))
        return error

    def _admit_rows(self, rows: int) -> None:
        if self._rows is None:
            self._rows = rows
        refuse_other_rows(rows, self._rows)

    def _join(self, group: str, part: _Part) -> None:
        self._parts[group] = self._parts[group].joined(part) if group in self._parts else part

    def _stacked(self, by_group: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.array(by_group, dtype=dtype).reshape(len(by_group), self._rows or 0)
