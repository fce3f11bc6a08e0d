"""Differences between two groups of examples, or two checkpoints: what `study.result(...).difference(...)` returns.

Method, for a number of each example (the mass of a head on the image) in rows (layer, head, class):

1. Where both sides have the same pictures (two prompts, two checkpoints), examples are pairs, and the mean difference
   is taken over pairs (`lensplug.statistics.paired_differences`); otherwise it is that of the two means
   (`group_differences`).
2. Intervals are those of a bootstrap over pairs, or Welch's.
3. p-values are those of permutations: signs of pairs are flipped, or labels shuffled, of whole clusters.
4. They are corrected for the number of rows: among hundreds of heads some differ by chance. By default with the largest
   statistic over all rows of each permutation, which holds whatever the heads have in common.

When to use it: to say which heads differ between two conditions of one data set.

When not to use it: with fewer than six pairs, no p-value is below 0.03. A difference that is significant may still be
small: look at `difference` and its interval.

Example:
    heads = study.result(analysis.head_specialization)
    heads.difference("rose", "tulip", by="species").significant()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.printable import printable
from lensplug.validation.arguments import at_least, checked

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class GroupDifferences(Result):
    """The first side less the second, one row for each thing that is measured."""

    main_number = "difference"

    table: pd.DataFrame
    """The labels (layer, head, ...), `difference`, `low`, `high`, `p_value`, `adjusted_p_value`, `count` (pairs, or
    examples of both sides), `clusters`."""
    analysis: str
    number: str
    """What is compared: "mass"."""
    names: tuple[str, str]
    """Of the two sides; the difference is the first less the second."""
    labels: tuple[str, ...]
    """The columns that say what is measured."""
    paired: bool
    convention: str
    """How intervals and p-values were made, in words."""
    provenance: Provenance
    """Of the first side."""

    @checked
    def significant(self, level: float = 0.05) -> pd.DataFrame:
        """The rows whose adjusted p-value is below a level, the largest differences first."""
        rows = self.table[self.table.adjusted_p_value < level]
        return rows.reindex(rows.difference.abs().sort_values(ascending=False, kind="stable").index).reset_index(
            drop=True
        )

    @checked
    def largest(self, k: int = 10) -> pd.DataFrame:
        """The k rows with the largest differences, either way."""
        at_least(1, k=k)
        order = self.table.difference.abs().sort_values(ascending=False, kind="stable").index[:k]
        return self.table.loc[order].reset_index(drop=True)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each thing that is measured."""
        return self.table.copy()

    def __repr__(self) -> str:
        """What was compared."""
        found = int((self.table.adjusted_p_value < 0.05).sum())
        return printable(
            f"GroupDifferences({self.number} of {self.analysis}: {self.names[0]} less {self.names[1]},"
            f" {found} of {len(self.table)} rows below 0.05; {self.convention})"
        )
