"""What a comparison of two sides gives: a difference for each row, its interval, its p-value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from lensplug.statistics.corrections import Correction, adjusted_p_values
from lensplug.statistics.permutation import PermutationTest


@dataclass(frozen=True)
class Differences:
    """The mean of one side less that of the other, in each row; NaN where there is too little to tell."""

    difference: Float64[np.ndarray, " row"]
    low: Float64[np.ndarray, " row"]
    """The lower limit of the difference."""
    high: Float64[np.ndarray, " row"]
    p_value: Float64[np.ndarray, " row"]
    """Two-sided, of this row alone."""
    adjusted_p_value: Float64[np.ndarray, " row"]
    """Corrected for the number of rows."""
    count: Int64[np.ndarray, " row"]
    """How many pairs, or examples of both sides, have a value."""
    clusters: Int64[np.ndarray, " row"]
    """How many clusters these are: what was drawn, and what signs or labels were shuffled of."""
    confidence: float
    """Of the interval of each row alone."""
    correction: Correction
    permutations: int
    """How many were tried."""
    is_exact: bool
    """Whether these were all there are; else p-values are those of random ones, at least 1 / (permutations + 1)."""
    seed: int


def adjusted(test: PermutationTest, correction: Correction) -> Float64[np.ndarray, " row"]:
    """The p-values of a permutation test, corrected."""
    if correction == "max_statistic":
        return test.max_statistic_p_value
    return adjusted_p_values(test.p_value, correction)
