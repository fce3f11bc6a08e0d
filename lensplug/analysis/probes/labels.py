"""Labels and groups of examples as users have them (lists, arrays, columns of tables), as numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from lensplug.errors import LensplugError
from lensplug.validation.arguments import described

Label = str | int
"""Of a class: a text, a whole number, or True and False."""


def class_numbers(labels: Any, count: int) -> tuple[tuple[Label, ...], Int64[np.ndarray, " sample"]]:
    """The classes in order, and the number of each example's.

    Raises:
        LensplugError: If there is not one label for each example, they are not of one kind, or there is one class.
    """
    values = _values(labels, count, "labels")
    classes = tuple(sorted(set(values)))
    if len(classes) < 2:
        raise LensplugError(f"every example is {classes[0]!r}: a probe needs examples of two classes.")
    number = {label: index for index, label in enumerate(classes)}
    return classes, np.array([number[label] for label in values], dtype=np.int64)


def group_numbers(groups: Any, count: int) -> Int64[np.ndarray, " sample"] | None:
    """The number of each example's group, in the order of their first examples; None without groups.

    Raises:
        LensplugError: If there is not one for each example, or they are not of one kind.
    """
    if groups is None:
        return None
    number: dict[Label, int] = {}
    values = _values(groups, count, "groups")
    return np.array([number.setdefault(group, len(number)) for group in values], dtype=np.int64)


def refuse_few(
    numbers: Int64[np.ndarray, " sample"],
    classes: Sequence[Label],
    groups: Int64[np.ndarray, " sample"] | None,
    folds: int,
) -> None:
    """Refuse classes with fewer examples, or groups, than folds.

    Raises:
        LensplugError: If there is one.
    """
    pairs = enumerate(numbers.tolist()) if groups is None else zip(groups.tolist(), numbers.tolist(), strict=True)
    members = Counter(number for _, number in set(pairs))
    for number, label in enumerate(classes):
        if members[number] < folds:
            what = "example" if groups is None else "group"
            raise LensplugError(
                f"the class {label!r} has {members[number]} {what}{'s' * (members[number] != 1)}, and each of {folds}"
                f" folds needs one: give more, folds={max(members[number], 2)}, or leave the class out."
            )


def _values(given: Any, count: int, name: str) -> list[Label]:
    """One text, whole number or truth value for each example."""
    if isinstance(given, str | bytes) or not (hasattr(given, "tolist") or isinstance(given, Sequence)):
        raise LensplugError(f"{name} is {described(given)}, expected a list, one for each example.")
    values = given.tolist() if hasattr(given, "tolist") else list(given)  # tensors, arrays, columns of tables
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    if len(values) != count:
        raise LensplugError(f"there are {len(values)} {name} for {count} examples: give one for each, in their order.")
    for index, value in enumerate(values):
        if not isinstance(value, str | int):
            raise LensplugError(
                f"{name}[{index}] is {described(value)}, expected a text, a whole number, or True or False: a class."
            )
        if type(value) is not type(values[0]):
            raise LensplugError(
                f"{name} are of several kinds, {values[0]!r} and {value!r} (example {index}): give one kind."
            )
    return values
