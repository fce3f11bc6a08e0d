"""How far two ways of computing one number may lie apart: derived, never chosen.

A sum of n products, made in whatever order, lies within (n - 1) u S of the exact one, where S is the sum of their
magnitudes and u half the dtype's epsilon (Higham 2002, chapter 4). Two orders therefore lie within n eps S of each
other. Processors, batch sizes, shapes and numbers of threads each choose an order of their own: what is compared across
them gets this much, and no more. The same kernel on the same numbers in the same shape stays exact.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rounding(dtype: torch.dtype, terms: int, scale: float | Tensor = 1.0) -> float:
    """The largest difference that rounding explains.

    Args:
        dtype: What is computed in.
        terms: How many numbers are added up on the way to one result, one stage after the other.
        scale: The sum of their magnitudes: 1 for a row of attention, the largest magnitude for what a norm keeps at
            one scale from layer to layer.
    """
    largest = float(scale.detach().abs().max()) if isinstance(scale, Tensor) else float(scale)
    return terms * torch.finfo(dtype).eps * largest


def through_layers(cfg: object, length: int) -> int:
    """The terms of `rounding` from the embedding to the logits of a model of TransformerLens, at so many positions."""
    width, inner, head = (int(getattr(cfg, name) or 0) for name in ("d_model", "d_mlp", "d_head"))
    return int(cfg.n_layers) * (4 * width + inner + head + length) + width  # type: ignore[attr-defined]
