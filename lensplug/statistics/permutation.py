"""Permutation tests of many rows at once: each permutation gives every row's statistic, and the largest over rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numpy as np
from jaxtyping import Float64

from lensplug.errors import LensplugError
from lensplug.validation.arguments import at_least

EXACT_UP_TO = 2**12
"""So many permutations are all tried, whatever number of random ones is asked for: the signs of 12 pairs."""
NUMBERS_AT_ONCE = 2**19
"""So many numbers a block of permutations, and the statistics of one, have at most: 4 MB."""
MOST = 1_000_000
"""Permutations: a p-value of 0.05 is known to 0.0002, and none is below 0.000001."""
TIE = 1e-9
"""Statistics are equal where they differ by less, relatively: sums of the same numbers in another order do."""

Statistic = Callable[[Float64[np.ndarray, "permutation cluster"]], Float64[np.ndarray, "permutation row"]]


@dataclass(frozen=True)
class PermutationTest:
    """p-values of each row, and those of the largest statistic over rows; NaN where the statistic is not defined."""

    p_value: Float64[np.ndarray, " row"]
    max_statistic_p_value: Float64[np.ndarray, " row"]
    permutations: int
    is_exact: bool


def refuse_permutations(permutations: int) -> None:
    """Refuse none, and more than tell anything.

    Raises:
        LensplugError: Then.
    """
    at_least(1, permutations=permutations)
    if permutations > MOST:
        raise LensplugError(
            f"permutations is {permutations:,}, expected at most {MOST:,}: a p-value of 0.05 is known to 0.0002"
            " then, and more are hours for nothing."
        )


def permutation_test(
    observed: Float64[np.ndarray, " row"],
    statistic: Statistic,
    arrangements: Iterator[Float64[np.ndarray, "permutation cluster"]],
    *,
    is_exact: bool,
) -> PermutationTest:
    """How often a permutation gives a statistic as large as was observed, on either side of 0.

    Random permutations count the observed one as well (Phipson and Smyth 2010): no p-value is 0. A statistic that a
    permutation leaves undefined is no evidence, and 0.

    Args:
        observed: The statistic of the data as they are.
        statistic: Signs or labels of clusters in, the statistic of each row out.
        arrangements: Blocks of signs or labels.
        is_exact: They are all there are, the observed one among them.
    """
    is_defined = ~np.isnan(observed)
    size = np.abs(observed[is_defined])
    at_least_as_large, exceeded_by_largest, tried = np.zeros(size.shape), np.zeros(size.shape), 0
    for block in arrangements:
        permuted = np.nan_to_num(np.abs(statistic(block)[:, is_defined]), nan=0.0)
        at_least_as_large += (permuted >= size * (1 - TIE)).sum(axis=0)
        largest = permuted.max(axis=1, initial=0.0)
        exceeded_by_largest += (largest[:, None] >= size * (1 - TIE)).sum(axis=0)
        tried += len(block)
    itself = 0 if is_exact else 1
    p_value, max_p_value = np.full(observed.shape, np.nan), np.full(observed.shape, np.nan)
    p_value[is_defined] = (at_least_as_large + itself) / (tried + itself)
    max_p_value[is_defined] = (exceeded_by_largest + itself) / (tried + itself)
    return PermutationTest(p_value, max_p_value, tried, is_exact)


def signs(
    clusters: int, rows: int, permutations: int, seed: int
) -> tuple[Iterator[Float64[np.ndarray, "permutation cluster"]], bool]:
    """Blocks of 1 and -1 for each cluster, and whether they are all there are."""
    if 2**clusters <= EXACT_UP_TO:
        numbers = np.arange(2**clusters)[:, None] >> np.arange(clusters)
        return _blocks(iter(1.0 - 2.0 * (numbers & 1)), clusters, rows), True
    random = np.random.default_rng(seed)
    return _random(
        lambda size: np.where(random.random((size, clusters)) < 0.5, 1.0, -1.0), clusters, rows, permutations
    ), False


def labels(
    clusters: int, first: int, rows: int, permutations: int, seed: int
) -> tuple[Iterator[Float64[np.ndarray, "permutation cluster"]], bool]:
    """Blocks of 1 for the clusters on the first side, 0 for the others, and whether they are all there are."""
    if comb(clusters, first) <= EXACT_UP_TO:
        return _blocks(
            (_indicator(chosen, clusters) for chosen in combinations(range(clusters), first)), clusters, rows
        ), True
    random = np.random.default_rng(seed)

    def shuffled(size: int) -> Float64[np.ndarray, "permutation cluster"]:
        # Neither side is empty: these few labels are all tried above.
        smallest = random.random((size, clusters)).argpartition(first - 1, axis=1)[:, :first]
        label = np.zeros((size, clusters))
        label[np.arange(size)[:, None], smallest] = 1
        return label

    return _random(shuffled, clusters, rows, permutations), False


def _indicator(chosen: tuple[int, ...], clusters: int) -> Float64[np.ndarray, " cluster"]:
    label = np.zeros(clusters)
    label[list(chosen)] = 1
    return label


def _at_once(clusters: int, rows: int) -> int:
    return max(1, NUMBERS_AT_ONCE // max(clusters, rows, 1))


def _blocks(
    arrangements: Iterator[Float64[np.ndarray, " cluster"]], clusters: int, rows: int
) -> Iterator[Float64[np.ndarray, "permutation cluster"]]:
    while block := list(islice(arrangements, _at_once(clusters, rows))):
        yield np.array(block)


def _random(
    draw: Callable[[int], Float64[np.ndarray, "permutation cluster"]], clusters: int, rows: int, permutations: int
) -> Iterator[Float64[np.ndarray, "permutation cluster"]]:
    for start in range(0, permutations, _at_once(clusters, rows)):
        yield draw(min(_at_once(clusters, rows), permutations - start))
