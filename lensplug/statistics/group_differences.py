"""Differences of groups that share no examples: two species, two sets of pictures.

Method, for the clusters c of each side, with s the sum of a cluster's values and n how many it has:

1. A side's mean is μ = Σ s / Σ n, the mean over its examples; the variance of the mean is
   v = Σ (s - μ n)² / (Σ n)² · k / (k - 1) over k clusters. Where each example is alone, v is variance / n.
2. The interval of the difference is Welch's: μ_a - μ_b ± t √(v_a + v_b), with the degrees of freedom of Welch and
   Satterthwaite.
3. If the sides do not differ, which clusters are on which side is chance. Labels are shuffled, of whole clusters and of
   all rows together, in every way where that is up to 4,096, else at random; the p-value is the share whose Welch t
   is as large as the observed one. With t, it also holds of many clusters whose spread differs between the sides
   (Janssen 1997).
4. p-values are corrected for the number of rows (`corrections`).

When to use it: for groups of different examples.

When not to use it: where both sides measured the same pictures: `paired_differences` is sharper, and shuffling labels
would be wrong.

Memory: clusters x rows x 8 bytes, about ten times, and 100 MB; nothing of the size permutations x clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from lensplug.errors import LensplugError
from lensplug.statistics.bootstrap import refuse_confidence
from lensplug.statistics.corrections import Correction
from lensplug.statistics.differences import Differences, adjusted
from lensplug.statistics.permutation import labels, permutation_test, refuse_permutations
from lensplug.statistics.values import Values, as_table, refuse_other_count, refuse_other_rows, sums_by_name
from lensplug.validation.arguments import checked

FLOOR = 1e-12
"""Of a sum of squares: a variance below is rounding, and the values are all the same."""


@checked
def group_differences(
    a: Values,
    b: Values,
    *,
    a_clusters: Sequence[str] | None = None,
    b_clusters: Sequence[str] | None = None,
    confidence: float = 0.95,
    correction: Correction = "max_statistic",
    permutations: int = 10_000,
    seed: int = 0,
) -> Differences:
    """The mean of a less the mean of b, in each row.

    Args:
        a: `[example row]`; NaN where an example has no value for a row.
        b: The other side, of the same rows.
        a_clusters: What each example belongs to: one name for all questions about a picture. Without it, each is alone.
        b_clusters: And of the other side.
        confidence: Of the interval of each row, between 0 and 1.
        correction: For the number of rows, by name (`lensplug.statistics.corrections`).
        permutations: How many random shuffles, where there are more than 4,096.
        seed: Of the shuffles.

    Raises:
        LensplugError: If a cluster is on both sides, or rows or names do not fit the values.
    """
    refuse_confidence(confidence)
    refuse_permutations(permutations)
    a_table, b_table = as_table(a, "a"), as_table(b, "b")
    refuse_other_rows(b_table.shape[1], a_table.shape[1])
    a_names, a_sums, a_counts = _by_cluster(a_table, a_clusters, "a")
    b_names, b_sums, b_counts = _by_cluster(b_table, b_clusters, "b")
    if a_clusters is not None and b_clusters is not None and (both := set(a_names) & set(b_names)):
        raise LensplugError(
            f"{len(both)} clusters are on both sides ({min(both)!r}): their examples are pairs, for paired_differences."
        )
    clusters = _Clusters.measured(np.concatenate([a_sums, b_sums]), np.concatenate([a_counts, b_counts]))
    is_a = np.repeat([[1.0, 0.0]], [len(a_names), len(b_names)], axis=1)
    blocks, is_exact = labels(len(is_a[0]), len(a_names), a_table.shape[1], permutations, seed)
    test = permutation_test(_t(is_a, clusters)[0], lambda shuffled: _t(shuffled, clusters), blocks, is_exact=is_exact)
    a_side, b_side = _sides(is_a, clusters)
    difference = (a_side.mean - b_side.mean)[0]
    half = _half_width(a_side, b_side, confidence)[0]
    return Differences(
        difference,
        difference - half,
        difference + half,
        test.p_value,
        adjusted(test, correction),
        clusters.counts.total.astype(np.int64),
        clusters.present.total.astype(np.int64),
        confidence,
        correction,
        test.permutations,
        is_exact,
        seed,
    )


def _by_cluster(
    table: Float64[np.ndarray, "example row"], clusters: Sequence[str] | None, side: str
) -> tuple[list[str], Float64[np.ndarray, "cluster row"], Float64[np.ndarray, "cluster row"]]:
    """The clusters in alphabetical order, so that the order of examples changes nothing; their sums and counts."""
    if clusters is None:
        return list(map(str, range(len(table)))), np.nan_to_num(table, nan=0.0), (~np.isnan(table)).astype(np.float64)
    refuse_other_count(clusters, len(table), f"{side}_clusters")
    names, sums, counts = sums_by_name(table, clusters)
    order = sorted(range(len(names)), key=names.__getitem__)
    return sorted(names), sums[order], counts[order]


@dataclass(frozen=True)
class _PerCluster:
    """A number of each cluster and row, which is summed over the clusters of a side."""

    columns: Float64[np.ndarray, "cluster column"]
    """Rows with the same numbers share a column: examples lack a modality in all its rows."""
    column: Int64[np.ndarray, " row"]
    total: Float64[np.ndarray, " row"]

    @classmethod
    def of(cls, numbers: Float64[np.ndarray, "cluster row"]) -> _PerCluster:
        number: dict[bytes, int] = {}
        column = [number.setdefault(bytes(of_row), len(number)) for of_row in np.ascontiguousarray(numbers.T)]
        first = [column.index(index) for index in range(len(number))]
        return cls(numbers[:, first], np.array(column, dtype=np.int64), numbers.sum(axis=0))

    def summed(self, is_a: Float64[np.ndarray, "permutation cluster"]) -> Float64[np.ndarray, "permutation row"]:
        summed: np.ndarray = (is_a @ self.columns)[:, self.column]
        return summed


@dataclass(frozen=True)
class _Clusters:
    """The sums and counts of all clusters."""

    counts: _PerCluster
    present: _PerCluster
    """1 where a cluster has a value."""
    sums: _PerCluster
    """Measured from the mean of all: squares of small numbers lose no digits."""
    squares: _PerCluster
    crossed: _PerCluster | None
    """Sum times count; None where no cluster has two values, and it is the sum."""
    count_squares: _PerCluster

    @classmethod
    def measured(
        cls, sums: Float64[np.ndarray, "cluster row"], counts: Float64[np.ndarray, "cluster row"]
    ) -> _Clusters:
        shifted = sums - counts * (sums.sum(axis=0) / np.maximum(counts.sum(axis=0), 1))
        return cls(
            _PerCluster.of(counts),
            _PerCluster.of((counts > 0).astype(np.float64)),
            _PerCluster.of(shifted),
            _PerCluster.of(shifted**2),
            _PerCluster.of(shifted * counts) if (counts > 1).any() else None,
            _PerCluster.of(counts**2),
        )


@dataclass(frozen=True)
class _Side:
    """One side in each permutation and row; NaN where it has no value, or for the variance no two clusters."""

    mean: Float64[np.ndarray, "permutation row"]
    variance: Float64[np.ndarray, "permutation row"]
    """Of the mean."""
    floor: Float64[np.ndarray, "permutation row"]
    """What rounding leaves of a variance of 0."""
    clusters: Float64[np.ndarray, "permutation row"]


def _sides(is_a: Float64[np.ndarray, "permutation cluster"], clusters: _Clusters) -> tuple[_Side, _Side]:
    parts = (clusters.counts, clusters.present, clusters.sums, clusters.squares, clusters.count_squares)
    of_a = [part.summed(is_a) for part in parts]
    of_b = [part.total - summed for part, summed in zip(parts, of_a, strict=True)]
    if clusters.crossed is None:
        of_a.append(of_a[2])
        of_b.append(of_b[2])
    else:
        of_a.append(clusters.crossed.summed(is_a))
        of_b.append(clusters.crossed.total - of_a[-1])
    scale = np.where(clusters.squares.total > 0, clusters.squares.total, 1)
    return _side(of_a, scale), _side(of_b, scale)


def _side(summed: Sequence[Float64[np.ndarray, "permutation row"]], scale: Float64[np.ndarray, " row"]) -> _Side:
    n, k, sums, squares, n_squares, crossed = summed
    with np.errstate(invalid="ignore", divide="ignore"):  # a side without values
        mean = sums / n
        factor = np.where(k > 1, k / (k - 1) / n**2, np.nan)
    deviations = np.maximum(squares - 2 * mean * crossed + mean**2 * n_squares, 0)
    return _Side(mean, deviations * factor, FLOOR * scale * factor, k)


def _t(is_a: Float64[np.ndarray, "permutation cluster"], clusters: _Clusters) -> Float64[np.ndarray, "permutation row"]:
    """Welch's t."""
    a, b = _sides(is_a, clusters)
    variance = np.maximum(a.variance, a.floor) + np.maximum(b.variance, b.floor)
    t: np.ndarray = (a.mean - b.mean) / np.sqrt(variance)
    return t


def _half_width(a: _Side, b: _Side, confidence: float) -> Float64[np.ndarray, "permutation row"]:
    """Of Welch's interval."""
    variance = a.variance + b.variance
    with np.errstate(invalid="ignore", divide="ignore"):  # of equal values, any number of degrees of freedom
        freedom = variance**2 / (a.variance**2 / (a.clusters - 1) + b.variance**2 / (b.clusters - 1))
    freedom = np.where(variance == 0, 1, freedom)
    half: np.ndarray = stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance)
    return half
