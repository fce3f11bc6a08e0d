"""Differences of pairs: the same picture under two prompts, the same example in two checkpoints.

Method:

1. Examples of both sides with one pair name are a pair; where a side has several of a name, their mean counts. What is
   on one side alone is left out. Its difference in a row is d = a - b, where both have a value.
2. The mean of d over pairs is the difference; its interval is that of the bootstrap over pairs, or over clusters of
   pairs (`Bootstrap`).
3. If the sides do not differ, the sign of a pair's differences is chance. Signs are flipped, of whole clusters and of
   all rows together, in every way for up to 12 clusters, else at random: one matrix product of signs and sums over
   clusters. The p-value is the share of flips whose t is as large as the observed one; t is the mean over its standard
   error (over clusters), so that the largest over rows is fair to rows of all scales.
4. p-values are corrected for the number of rows (`corrections`).

When to use it: whenever the two sides share examples: what pictures have in common cancels.

When not to use it: for two sets of different examples (`group_differences`). Six pairs have no p below 2 / 2⁶ = 0.03.

Memory: the differences, pairs x rows x 8 bytes, a few times, and 100 MB; nothing of the size permutations x pairs.

Example:
    heads = statistics.paired_differences(color, count, a_pairs=pictures_of_color, b_pairs=pictures_of_count)
    (heads.adjusted_p_value < 0.05).nonzero()             # the heads that differ between the prompts
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from lensplug.errors import LensplugError
from lensplug.statistics.bootstrap import Bootstrap, refuse_confidence
from lensplug.statistics.corrections import Correction
from lensplug.statistics.differences import Differences, adjusted
from lensplug.statistics.permutation import permutation_test, refuse_permutations, signs
from lensplug.statistics.values import Values, as_table, refuse_other_count, refuse_other_rows, sums_by_name
from lensplug.validation.arguments import checked

FLOOR = 1e-12
"""Of a sum of squares: a variance below is rounding, and the differences are all the same."""


@checked
def paired_differences(
    a: Values,
    b: Values,
    *,
    a_pairs: Sequence[str],
    b_pairs: Sequence[str],
    a_clusters: Sequence[str] | None = None,
    confidence: float = 0.95,
    correction: Correction = "max_statistic",
    permutations: int = 10_000,
    replicates: int = 2000,
    seed: int = 0,
) -> Differences:
    """The mean difference a - b over pairs, in each row.

    Args:
        a: `[example row]`; NaN where an example has no value for a row.
        b: The other side, of the same rows.
        a_pairs: The name of each example's pair.
        b_pairs: And of the other side.
        a_clusters: What each example of `a` is drawn and flipped with: one name for all questions about a picture.
            Without it, each pair is alone.
        confidence: Of the interval of each row, between 0 and 1.
        correction: For the number of rows, by name (`lensplug.statistics.corrections`).
        permutations: How many random flips, beyond 12 clusters.
        replicates: Of the bootstrap.
        seed: Of flips and bootstrap.

    Raises:
        LensplugError: If no name is on both sides, rows or names do not fit the values, or a pair is in two clusters.
    """
    refuse_confidence(confidence)
    refuse_permutations(permutations)
    a_table, b_table = as_table(a, "a"), as_table(b, "b")
    refuse_other_rows(b_table.shape[1], a_table.shape[1])
    pairs, differences = _matched(a_table, b_table, a_pairs, b_pairs)
    cluster_of_pair = _clusters(a_pairs, a_clusters)
    clusters = [cluster_of_pair[pair] for pair in pairs]
    bootstrap = Bootstrap(replicates=replicates, seed=seed)
    bootstrap.add(differences, ["difference"] * len(pairs), clusters)
    interval = bootstrap.interval(confidence=confidence)
    names, sums, counts = sums_by_name(differences, clusters)
    blocks, is_exact = signs(len(names), sums.shape[1], permutations, seed)
    test = permutation_test(
        _t(np.ones((1, len(names))), sums, counts)[0],
        lambda flips: _t(flips, sums, counts),
        blocks,
        is_exact=is_exact,
    )
    return Differences(
        bootstrap.mean[0],
        interval.low[0],
        interval.high[0],
        test.p_value,
        adjusted(test, correction),
        counts.sum(axis=0).astype(np.int64),
        (counts > 0).sum(axis=0),
        confidence,
        correction,
        test.permutations,
        is_exact,
        seed,
    )


def _matched(
    a: Float64[np.ndarray, "a_example row"],
    b: Float64[np.ndarray, "b_example row"],
    a_pairs: Sequence[str],
    b_pairs: Sequence[str],
) -> tuple[list[str], Float64[np.ndarray, "pair row"]]:
    """The names on both sides in alphabetical order, so that the order of examples changes nothing; their differences.

    Raises:
        LensplugError: If there are none.
    """
    refuse_other_count(a_pairs, len(a), "a_pairs")
    refuse_other_count(b_pairs, len(b), "b_pairs")
    pairs = sorted(set(a_pairs) & set(b_pairs))
    if not pairs:
        raise LensplugError(
            f"no pair is on both sides: a has {_some(a_pairs)}, b has {_some(b_pairs)}; a pair has one name on both."
            " For different examples there is group_differences."
        )
    means = []
    for table, names in ((a, a_pairs), (b, b_pairs)):
        found, sums, counts = sums_by_name(table, names)
        number = {name: index for index, name in enumerate(found)}
        chosen = [number[pair] for pair in pairs]
        mean = np.full((len(pairs), table.shape[1]), np.nan)
        means.append(np.divide(sums[chosen], counts[chosen], out=mean, where=counts[chosen] > 0))
    return pairs, means[0] - means[1]


def _clusters(a_pairs: Sequence[str], a_clusters: Sequence[str] | None) -> dict[str, str]:
    """The cluster of each pair.

    Raises:
        LensplugError: If a pair is in two.
    """
    if a_clusters is None:
        return {pair: pair for pair in a_pairs}
    refuse_other_count(a_clusters, len(a_pairs), "a_clusters")
    cluster_of_pair: dict[str, str] = {}
    for pair, cluster in zip(a_pairs, a_clusters, strict=True):
        if cluster_of_pair.setdefault(pair, cluster) != cluster:
            raise LensplugError(
                f"pair {pair!r} is in the clusters {cluster_of_pair[pair]!r} and {cluster!r}: it can be drawn with one."
            )
    return cluster_of_pair


def _some(names: Sequence[str]) -> str:
    shown = [repr(name) for name in dict.fromkeys(names)]
    return ", ".join(shown[:2]) + (", ..." if len(shown) > 2 else "") if shown else "none"


def _t(
    flips: Float64[np.ndarray, "permutation cluster"],
    sums: Float64[np.ndarray, "cluster row"],
    counts: Float64[np.ndarray, "cluster row"],
) -> Float64[np.ndarray, "permutation row"]:
    """The mean difference over its standard error over clusters; NaN below two clusters."""
    total, present = counts.sum(axis=0), (counts > 0).sum(axis=0)
    flipped = flips @ sums
    mean = flipped / np.maximum(total, 1)
    # Σ (s - mean n)² over clusters, of which flips leave the first and the last part as they are.
    squares = (sums**2).sum(axis=0)
    crossed = flips @ (sums * counts) if (counts > 1).any() else flipped
    deviations = squares - 2 * mean * crossed + mean**2 * (counts**2).sum(axis=0)
    deviations = np.maximum(deviations, FLOOR * np.where(squares > 0, squares, 1))
    factor = np.where(present > 1, present / np.maximum(present - 1, 1) / np.maximum(total, 1) ** 2, np.nan)
    t: np.ndarray = mean / np.sqrt(deviations * factor)
    return t
