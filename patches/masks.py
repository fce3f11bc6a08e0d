"""Masks as people have them, to bool: one rule for every argument that says which positions, or which pixels.

A mask is True and False, or 1 and 0 of any dtype: a tensor, an array or a list. In an additive mask 0 means the
opposite, and `~` of whole numbers is never 0: what is neither is refused, for it would be read wrongly in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from lensplug.patches.errors import LensplugError


def as_mask(given: Any, shape: Sequence[int | None], name: str, *, against: str = "expected") -> Bool[Tensor, "*axes"]:
    """A mask as bool, where it is.

    Args:
        given: A tensor, an array or nested lists of True and False, or of 1 and 0.
        shape: What it must have; None for an axis of any size.
        name: What it is called in an error.
        against: Words between the shape that came and the one expected.

    Raises:
        LensplugError: If it has another shape, or another value: NaN, minus infinity, weights between 0 and 1.
    """
    mask = _tensor(given, name)
    fits = mask.ndim == len(shape) and all(
        expected_size in (None, size) for expected_size, size in zip(shape, mask.shape, strict=True)
    )
    if not fits:
        expected = [("any" if expected_size is None else expected_size) for expected_size in shape]
        raise LensplugError(f"{name} has the shape {list(mask.shape)}, {against} {expected}.".replace("'", ""))
    if mask.dtype == torch.bool:
        return mask
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise LensplugError(f"{name} holds {_others(mask)}, expected True and False, or 1 and 0.{_instead(mask, name)}")
    return mask.bool()


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        if isinstance(value, np.ndarray | np.generic | list | tuple):
            return torch.tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError):
        pass
    raise LensplugError(f"{name} is a {type(value).__name__}, expected a mask: a tensor of True and False.")


def _others(mask: Tensor) -> str:
    invalid = mask[~((mask == 0) | (mask == 1))]
    kinds = list(dict.fromkeys("NaN" if value != value else f"{value:.4g}" for value in invalid[:100].tolist()))
    return ", ".join(kinds[:3]) + (", ..." if len(kinds) > 3 else "")


def _instead(mask: Tensor, name: str) -> str:
    if not mask.is_floating_point() or not bool((mask <= 0).all()) or not bool((mask < 0).any()):
        return ""
    return f" For an additive mask, which is 0 where attention is allowed, pass {name} == 0."
