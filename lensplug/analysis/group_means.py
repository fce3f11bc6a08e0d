"""Means over the examples of a study, in groups, with intervals: what `study.result(...).mean(by=...)` returns.

Method, for a number x of each example (the mass of a head on the image) and a group g of examples:

1. Take the mean over the examples of g that have the number: m = Σ x / n. Sums are streamed from the chunks of a study
   (Chan's merge of count, mean and squares), so that the data set may be larger than memory.
2. The standard error is that of independent examples: s / sqrt(n).
3. The interval is a bootstrap over clusters (`lensplug.statistics.Bootstrap`): examples are drawn again with
   replacement, all that share a picture together, 2,000 times; its limits are percentiles of the means.

When to use it: to say how a number varies between groups of examples, and how well a mean over a data set is known.

When not to use it: overlapping intervals of two groups are no test of their difference: where both groups have the same
pictures, the difference is known much better than each mean (`study.result(...).difference(...)`).

Example:
    heads = study.result(analysis.head_specialization)
    heads.mean(by="species").largest(10, group="rose")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.printable import printable
from lensplug.validation.arguments import at_least, checked

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class GroupMeans(Result):
    """Means over the examples of each group, one row for each group and thing that is measured."""

    main_number = "mean"
    standard_errors = {"mean": "standard_error"}

    table: pd.DataFrame
    """`group`, the labels (layer, head, ...), `mean`, `standard_error`, `low`, `high`, `count` (examples)."""
    analysis: str
    number: str
    """What the means are of: "mass"."""
    group_by: str
    """The column of the examples that says the group; "" where all examples are one."""
    groups: tuple[str, ...]
    labels: tuple[str, ...]
    """The columns that say what is measured."""
    interval: str
    """What the limits are, in words; "" where there are none."""
    provenance: Provenance

    @checked
    def largest(self, k: int = 10, *, group: str | None = None) -> pd.DataFrame:
        """The k rows with the largest mean, of one group or of all.

        Args:
            k: How many.
            group: One of `groups`.
        """
        at_least(1, k=k)
        rows = self.table if group is None else self.table[self.table.group == group]
        return rows.sort_values("mean", ascending=False, kind="stable").head(k).reset_index(drop=True)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each group and thing that is measured."""
        return self.table.copy()

    def __repr__(self) -> str:
        """What was averaged, and over how much."""
        count = int(np.nanmax(self.table["count"])) if len(self.table) else 0
        by = f" by {self.group_by} ({', '.join(self.groups[:5])}{', ...' if len(self.groups) > 5 else ''})"
        return printable(
            f"GroupMeans({self.number} of {self.analysis}{by if self.group_by else ''}, up to {count} examples a group;"
            f" {self.interval or 'no interval'})"
        )
