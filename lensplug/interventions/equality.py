"""Equal edits are equal, also those that hold tensors, whose own `==` is not a yes or no.

Two edits are equal if they are of one class and each option is: tensors and arrays with the same shape, dtype and
numbers, caches with the same activations, lists, tuples and ranges with the same entries. An SAE is equal to itself.
Equal edits have equal hashes, so that edits can be kept in sets and as keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


class EqualByValue:
    """What an edit, a frozen dataclass with `eq=False`, takes its equality from."""

    def __eq__(self, other: object) -> bool:
        """Whether it is an edit of this class with the same options."""
        if type(other) is not type(self):
            return NotImplemented
        return self is other or all(_same(*pair) for pair in zip(_options(self), _options(other), strict=True))

    def __hash__(self) -> int:
        """Of its class, and of the options that are one name or number: those that hold more may hold tensors."""
        simple = [value for value in _options(self) if value is None or isinstance(value, str | bool | int | float)]
        return hash((type(self).__name__, *simple))


def _options(edit: Any) -> list[Any]:
    return [getattr(edit, each.name) for each in fields(edit)]


def _same(first: Any, second: Any) -> bool:
    if first is second:
        return True
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        alike = first.shape == second.shape and first.dtype == second.dtype
        return alike and torch.equal(first.detach().cpu(), second.detach().cpu())
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, Tensor | np.ndarray) or isinstance(second, Tensor | np.ndarray):
        return False
    first, second = (getattr(value, "cache_dict", value) for value in (first, second))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if _is_list(first) and _is_list(second):
        return len(first) == len(second) and all(map(_same, first, second))
    if is_dataclass(first) and type(first) is type(second):
        return all(_same(*pair) for pair in zip(_options(first), _options(second), strict=True))
    return type(first) is type(second) and bool(first == second) or _is_number(first, second)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_number(first: Any, second: Any) -> bool:
    """Whether both are numbers and equal: 2 and 2.0 are, 1 and True are not."""
    numbers = all(
        isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in (first, second)
    )
    return numbers and bool(first == second)
