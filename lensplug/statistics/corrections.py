"""p-values of many rows at once: what is left of them when hundreds of heads are tested.

Of 336 heads without any difference, 17 have p < 0.05. A correction makes p-values larger. Below 0.05 there is then

- "max_statistic": in 95 % of studies no head that has no difference (family-wise), whatever heads have to do with each
  other. A row's statistic is compared with the largest over all rows in each permutation (Westfall and Young 1993, in
  one step). It is the default of `paired_differences` and `group_differences`, which have the permutations: nothing is
  assumed, and where few examples cannot give small p-values, it does not multiply them by the number of heads.
- "holm": the same, of p-values alone (Holm 1979); it finds less where heads are alike.
- "benjamini_hochberg": heads without a difference are on average 5 % of those found (false discovery rate; Benjamini
  and Hochberg 1995): for a list of candidates. Heads are taken as independent or positively dependent.
- "benjamini_yekutieli": the same without that assumption (2001); larger by a factor of about ln(rows) + 0.58.
- "none": the p-values as they are.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float64
from scipy import stats

from lensplug.errors import LensplugError
from lensplug.statistics.values import Values
from lensplug.validation.arguments import checked, described

PValueCorrection = Literal["holm", "benjamini_hochberg", "benjamini_yekutieli", "none"]
Correction = Literal["max_statistic", "holm", "benjamini_hochberg", "benjamini_yekutieli", "none"]
SCIPY_NAMES: dict[str, Literal["bh", "by"]] = {"benjamini_hochberg": "bh", "benjamini_yekutieli": "by"}


@checked
def adjusted_p_values(p_values: Values, correction: PValueCorrection = "holm") -> Float64[np.ndarray, "*rows"]:
    """p-values corrected for how many there are, in the same shape.

    Args:
        p_values: Of any shape; NaN, where nothing was tested, does not count and stays.
        correction: By name, as `lensplug.statistics.corrections` explains; "max_statistic" needs the permutations.

    Raises:
        LensplugError: If they are no numbers between 0 and 1.
    """
    try:
        table = np.array(p_values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LensplugError(f"p_values is {described(p_values)}, expected numbers between 0 and 1.") from error
    tested = ~np.isnan(table)
    if ((table[tested] < 0) | (table[tested] > 1)).any():
        raise LensplugError(f"p_values lie between {np.nanmin(table):g} and {np.nanmax(table):g}, expected 0 to 1.")
    if correction != "none" and tested.any():
        scipy_name = SCIPY_NAMES.get(correction)
        table[tested] = (
            stats.false_discovery_control(table[tested], method=scipy_name) if scipy_name else _holm(table[tested])
        )
    return table


def _holm(p_values: Float64[np.ndarray, " row"]) -> Float64[np.ndarray, " row"]:
    """The smallest p-value times n, the next times n - 1, ...; never below that of a smaller p-value."""
    order = np.argsort(p_values)
    multiplied = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(multiplied), 1)
    return adjusted
