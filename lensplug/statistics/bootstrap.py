"""Bootstrap intervals of means, by drawing clusters of examples again, of data sets of any size in one pass.

Method:

1. Replicate r draws cluster c w[r, c] times: a number from Poisson(1) that the seed and the name of the cluster tell
   (`poisson_weights`).
2. Its mean of a group and row is Σ w[r, c] s[c] / Σ w[r, c] n[c], over the group's clusters: s is the sum of the values
   of a cluster, n how many it has. Both are one matrix product for each chunk, and sums over chunks.
3. The interval is that of the percentiles of these means; at confidence 0.95, from 2.5 % to 97.5 %.

Why Poisson: the ordinary bootstrap has multinomial weights, whose sum is the number of clusters. Poisson(1) weights
with that sum, or any other, are exactly multinomial, and the mean divides by their sum. To fix it, all clusters would
have to be known before the first is weighted. As it is, a cluster's weights are drawn where it occurs: chunks come in
any order, a cluster may be in several, parts of several processes merge, and what failed is left out (Hanley and
MacGibbon 2006, "Creating non-parametric bootstrap samples using Poisson frequencies"; Chamandy et al. 2012,
"Estimating Uncertainty for Massive Data Streams"). The sum varies, which widens intervals by about as much as
multinomial ones are too narrow. Share of 1,000 intervals at 0.95 that hold the mean: these, multinomial percentiles,
multinomial BCa.

    clusters              5                    10                   30                   100
    normal        .876  .834  .829     .919  .901  .893     .949  .942  .940     .942  .943  .942
    exponential   .834  .783  .799     .878  .861  .866     .927  .922  .929     .939  .938  .935
    beta(.3, 3)   .774  .732  .753     .872  .857  .873     .920  .913  .936     .949  .947  .956

Why percentiles: the limits of a share stay between 0 and 1, and nothing but the replicates is needed. BCa asks for the
skewness over clusters, which chunks do not tell of clusters that lie in several.

When to use it: for error bars over examples, above all where several examples share a picture.

When not to use it: below some 10 clusters every bootstrap interval is too narrow, as the table says.

Memory: (replicates + 1) x rows numbers of 8 bytes for each group (2,000 replicates of 336 rows: 5.4 MB), and a column
of them for each set of rows that have values in the same examples; nothing for each example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from lensplug.errors import LensplugError
from lensplug.statistics.group_sums import GroupSums
from lensplug.statistics.poisson_weights import poisson_weights
from lensplug.statistics.values import (
    Values,
    as_table,
    examples_by_name,
    refuse_other_count,
    refuse_other_rows,
    sums_by_name,
)
from lensplug.validation.arguments import at_least, checked

MOST_REPLICATES = 100_000
"""Whose means of 336 rows are 270 MB for each group."""
CLUSTERS_AT_ONCE = 256
"""So many have their weights in memory: 2,000 replicates are 4 MB."""


@dataclass(frozen=True)
class Interval:
    """Limits of a mean or a difference; NaN where fewer than two clusters have a value."""

    low: Float64[np.ndarray, "*group row"]
    high: Float64[np.ndarray, "*group row"]
    confidence: float
    """How often such an interval holds the true value, between 0 and 1."""


class Bootstrap:
    """Streamed bootstrap of the mean of each group and row.

    A cluster has the same weights in every group: where two groups measure the same pictures (two prompts),
    `difference` is that of pairs.
    """

    @checked
    def __init__(self, *, replicates: int = 2000, seed: int = 0) -> None:
        """Begin.

        Args:
            replicates: How often clusters are drawn again.
            seed: The same seed gives the same numbers; another seed, others.

        Raises:
            LensplugError: If there are no two replicates, or too many.
        """
        at_least(2, replicates=replicates)
        if replicates > MOST_REPLICATES:
            raise LensplugError(
                f"replicates is {replicates:,}, expected at most {MOST_REPLICATES:,}: their means are all in memory,"
                " and limits hardly change beyond a few thousand."
            )
        self.replicates, self.seed = replicates, seed
        self._sums: dict[str, GroupSums] = {}
        self._rows: int | None = None

    @checked
    def add(self, values: Values, groups: Sequence[str], clusters: Sequence[str]) -> None:
        """Count examples.

        Args:
            values: `[example row]`; NaN where an example has no value for a row.
            groups: The group of each example.
            clusters: What each example is drawn with: one name for all questions about a picture. Where each is drawn
                alone, a name of its own, the same in every run: its id.

        Raises:
            LensplugError: If the values are no table of finite numbers and NaN, have other rows than those before, or
                there is not one group and one cluster for each example. Nothing is counted then.
        """
        table = as_table(values)
        refuse_other_count(groups, len(table), "groups")
        refuse_other_count(clusters, len(table), "clusters")
        self._admit_rows(table.shape[1])
        for group, examples in examples_by_name(groups).items():
            names, sums, counts = sums_by_name(table[examples], [clusters[example] for example in examples])
            for start in range(0, len(names), CLUSTERS_AT_ONCE):
                part = slice(start, start + CLUSTERS_AT_ONCE)
                # The first replicate draws every cluster once: it is the mean itself.
                weights = np.ones((self.replicates + 1, len(names[part])))
                weights[1:] = poisson_weights(names[part], self.replicates, self.seed)
                self._of(group).add(weights, sums[part], counts[part], names[part])

    @checked
    def merge(self, other: Bootstrap) -> None:
        """Add what another has counted, of other examples; of the same clusters or others.

        Raises:
            LensplugError: If it has another seed, replicates or rows, or is this one.
        """
        if other is self:
            raise LensplugError("a bootstrap is merged with itself, and every example would count twice.")
        if (other.seed, other.replicates) != (self.seed, self.replicates):
            raise LensplugError(
                f"a bootstrap of seed {other.seed} and {other.replicates} replicates is merged with one of seed"
                f" {self.seed} and {self.replicates}: their replicates drew other clusters; use one seed."
            )
        if other._rows is not None:
            self._admit_rows(other._rows)
        for group, sums in other._sums.items():
            self._of(group).merge(sums)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that occurred, in alphabetical order: the same whatever the order of chunks."""
        return tuple(sorted(self._sums))

    @property
    def mean(self) -> Float64[np.ndarray, "group row"]:
        """The mean over examples; NaN where none has a value."""
        return self._stacked([self._sums[group].means()[0] for group in self.groups])

    @checked
    def replicate_means(self, group: str) -> Float64[np.ndarray, "replicate row"]:
        """The mean of each replicate; NaN where it drew no example with a value.

        Raises:
            LensplugError: If there is no such group.
        """
        return self._known(group).means()[1:]

    @checked
    def interval(self, *, confidence: float = 0.95) -> Interval:
        """Limits of each group's mean, `[group row]`: percentiles of the replicates.

        Args:
            confidence: Between 0 and 1.

        Raises:
            LensplugError: If it is not.
        """
        refuse_confidence(confidence)
        limits = [
            percentile_limits(self.replicate_means(group), confidence, self._sums[group].has_several_clusters)
            for group in self.groups
        ]
        low, high = (self._stacked([limit[side] for limit in limits]) for side in (0, 1))
        return Interval(low, high, confidence)

    @checked
    def difference(self, group: str, other: str, *, confidence: float = 0.95) -> Interval:
        """Limits of one group's mean less another's, `[row]`; of pairs, where clusters are in both.

        Raises:
            LensplugError: If there is no such group, or the confidence is not between 0 and 1.
        """
        refuse_confidence(confidence)
        several = self._known(group).has_several_clusters & self._known(other).has_several_clusters
        differences = self.replicate_means(group) - self.replicate_means(other)
        low, high = percentile_limits(differences, confidence, several)
        return Interval(low, high, confidence)

    def _admit_rows(self, rows: int) -> None:
        if self._rows is None:
            self._rows = rows
        refuse_other_rows(rows, self._rows)

    def _of(self, group: str) -> GroupSums:
        if group not in self._sums:
            self._sums[group] = GroupSums(self.replicates + 1, self._rows or 0)
        return self._sums[group]

    def _known(self, group: str) -> GroupSums:
        if group not in self._sums:
            raise LensplugError(
                f"there is no group {group!r}, there are {', '.join(map(repr, self.groups)) or 'none'}."
            )
        return self._sums[group]

    def _stacked(self, by_group: list[np.ndarray]) -> np.ndarray:
        return np.array(by_group, dtype=np.float64).reshape(len(by_group), self._rows or 0)


def refuse_confidence(confidence: float) -> None:
    """Refuse what is not between 0 and 1.

    Raises:
        LensplugError: Then.
    """
    if not 0 < confidence < 1:
        raise LensplugError(f"confidence is {confidence:g}, expected a share between 0 and 1, such as 0.95.")


def percentile_limits(
    replicates: Float64[np.ndarray, "replicate row"], confidence: float, is_defined: np.ndarray
) -> Float64[np.ndarray, "2 row"]:
    """The percentiles of each row that leave (1 - confidence) / 2 on either side; NaN where they are not defined."""
    tail = (1 - confidence) / 2
    limits = np.full((2, replicates.shape[1]), np.nan)
    drew = ~np.isnan(replicates)
    whole = is_defined & drew.all(axis=0)
    limits[:, whole] = np.quantile(replicates[:, whole], [tail, 1 - tail], axis=0)
    for row in np.flatnonzero(is_defined & ~whole & drew.any(axis=0)):  # some replicate drew no value at all
        limits[:, row] = np.quantile(replicates[drew[:, row], row], [tail, 1 - tail])
    return limits
