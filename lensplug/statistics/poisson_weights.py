"""How often each cluster is drawn in each bootstrap replicate, told by its name and the seed alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

BITS = 32
THRESHOLDS = tuple(
    threshold
    for drawn in range(20)
    if (threshold := round(2**BITS * math.exp(-1) * sum(1 / math.factorial(k) for k in range(drawn + 1)))) < 2**BITS
)
"""A uniform number of 32 bits that reaches n of these is n drawings: the distribution function of Poisson(1)."""


def poisson_weights(clusters: Sequence[str], replicates: int, seed: int) -> Float64[np.ndarray, "replicate cluster"]:
    """For each replicate and cluster a whole number from Poisson(1).

    The uniform numbers are SHAKE-128 of seed and name: the same in every process, machine and version of NumPy, in
    whatever order and company clusters come.
    """
    uniform = np.empty((len(clusters), replicates), dtype="<u4")
    for number, cluster in enumerate(clusters):
        text = f"{seed}|{cluster}".encode("utf-8", "surrogatepass")
        uniform[number] = np.frombuffer(hashlib.shake_128(text).digest(BITS // 8 * replicates), dtype="<u4")
    drawn = np.zeros(uniform.shape, dtype=np.uint8)
    for threshold in THRESHOLDS:
        drawn += uniform >= threshold
    weights: np.ndarray = drawn.T.astype(np.float64)
    return weights
