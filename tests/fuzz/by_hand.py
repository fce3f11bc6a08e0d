"""The definitions in numpy and plain Python, in double precision: what a paper says, as it says it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NEAR = 1e-6
"""Two weights that differ by less, as a share of the larger, may be ordered either way by rounding."""


class Undecided(Exception):
    """Rounding decides: which of two nearly equal weights is the smaller one."""


def fused(pattern: np.ndarray, how: str, heads: Sequence[int] | None) -> np.ndarray:
    """`[head query key]` to `[query key]`; nothing of no heads."""
    chosen = pattern if heads is None else pattern[sorted(set(heads))]
    if not len(chosen):
        return np.zeros(pattern.shape[1:])
    return {"mean": chosen.mean(0), "max": chosen.max(0), "min": chosen.min(0)}[how]


def mixture(
    attention: np.ndarray,
    *,
    residual: float | np.ndarray = 0.5,
    discard: float = 0.0,
    exclude: int | None = None,
) -> np.ndarray:
    """(1 - r) A + r I, the rows of A without what is left out and scaled to sum 1; a row of nothing is that of I."""
    attention, length = np.array(attention, dtype=float), attention.shape[-1]
    weight = np.broadcast_to(residual, (length,))
    if exclude is not None:
        attention[:, exclude] = 0
    mixed = np.eye(length)
    for query, row in enumerate(attention):
        largest = _without_smallest(row, discard)
        if largest.sum() > 0:
            mixed[query] = (1 - weight[query]) * largest / largest.sum() + weight[query] * np.eye(length)[query]
    return mixed


def _without_smallest(row: np.ndarray, share: float) -> np.ndarray:
    above = np.sort(row[row > 0])
    n_dropped = int(np.floor(len(above) * share))
    if not n_dropped:
        return row
    if abs(len(above) * share - round(len(above) * share)) < 1e-4:
        raise Undecided
    if 0 < (above[n_dropped] - above[n_dropped - 1]) < NEAR * above[n_dropped]:
        raise Undecided
    return np.where(row >= above[n_dropped], row, 0.0)


def even_mixture(
    attention: np.ndarray,
    seen: np.ndarray,
    *,
    residual: float,
    discard: float,
    exclude: int | None,
    apart: int | None,
) -> np.ndarray:
    """The same mixture of attention that is even over what a row sees, but for the position that is set apart."""
    plain = mixture(attention, residual=0.0, discard=discard, exclude=exclude)
    mixed = np.eye(len(attention))
    for query, row in enumerate(np.array(attention, dtype=float)):
        remaining = row if exclude is None else np.delete(row, exclude)
        if remaining.sum() == 0:
            continue  # it keeps itself
        others = seen[query].copy()
        even = np.zeros(len(row))
        if apart is not None:
            others[apart] = False
            even[apart] = plain[query, apart]
        even[others] = (1 - even.sum()) / max(others.sum(), 1)
        mixed[query] = (1 - residual) * even + residual * mixed[query]
    return mixed


def product(mixtures: Sequence[np.ndarray]) -> np.ndarray:
    """Last ... first."""
    result = np.eye(len(mixtures[0]))
    for mixture_of_layer in mixtures:
        result = mixture_of_layer @ result
    return result


def cams(pattern: np.ndarray, gradient: np.ndarray, contributions: str) -> np.ndarray:
    """Equation 5 of Chefer et al. 2021, the mean over heads of the positive part; its counterpart; the difference."""
    weighted = pattern * gradient
    positive, negative = np.maximum(weighted, 0).mean(0), np.maximum(-weighted, 0).mean(0)
    return {"positive": positive, "negative": negative, "signed": positive - negative}[contributions]


def relevance(own: Sequence[np.ndarray], normalize: bool) -> np.ndarray:
    """R of equation 6, or with equations 8 and 9 after every layer."""
    identity = np.eye(len(own[0]))
    R = identity
    for cam in own:
        R = R + cam @ R
        if normalize:
            off_identity = R - identity
            total = off_identity.sum(-1, keepdims=True)
            R = np.divide(off_identity, total, out=np.zeros_like(off_identity), where=total > 0) + identity
    return R


def causal(length: int, window: int | None = None) -> np.ndarray:
    """Which keys a query may see in a causal layer, `[query key]`."""
    positions = np.arange(length)
    is_visible = positions[None] <= positions[:, None]
    return is_visible if window is None else is_visible & (positions[None] > positions[:, None] - window)


def softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def position(wanted: int, real: Sequence[int]) -> int:
    """A position as users say it: from the left of the tensor, or from the last that is not padding."""
    return wanted if wanted >= 0 else real[-1] + 1 + wanted
