"""Which examples are held out together, and labels shuffled for control: scikit-learn's folds.

With groups (several questions about one picture) all examples of a group are held out together: otherwise a probe could
know a picture that it is tested on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from lensplug.errors import LensplugError

Split = tuple[np.ndarray, np.ndarray]
"""The examples that a probe is trained on, and those that are held out."""
DRAWS = 100


def splits(
    numbers: Int64[np.ndarray, " sample"], groups: Int64[np.ndarray, " sample"] | None, folds: int, seed: int
) -> list[Split]:
    """Folds with the classes in equal parts, as far as groups allow.

    Args:
        numbers: The class of each example.
        groups: The group of each example.
        folds: How many.
        seed: Which folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(n_splits=folds, shuffle=True, random_state=seed)
    return list(splitter.split(numbers[:, None], numbers, groups))


def refuse_incomplete(found: Sequence[Split], numbers: Int64[np.ndarray, " sample"], classes: Sequence[object]) -> None:
    """Refuse folds that hold out nothing, or every example of a class.

    Raises:
        LensplugError: If there is one: groups are too few, or too unequal.
    """
    for index, (train, held_out) in enumerate(found):
        absent = set(range(len(classes))) - set(numbers[train].tolist())
        if absent or not len(held_out):
            what = f"every example of the class {classes[min(absent)]!r}" if absent else "nothing"
            raise LensplugError(
                f"fold {index} holds out {what}: the groups are too few or too unequal for {len(found)} folds; give"
                " fewer folds, or more groups."
            )


def shuffled_folds(
    numbers: Int64[np.ndarray, " sample"],
    groups: Int64[np.ndarray, " sample"] | None,
    *,
    folds: int,
    shuffles: int,
    seed: int,
) -> Iterator[tuple[Int64[np.ndarray, " sample"], list[Split]]]:
    """Labels in random order, and folds for them.

    Groups whose examples have one label exchange it as a whole; where labels differ within a group, examples do.

    Raises:
        LensplugError: If no order leaves two classes in every training part.
    """
    generator = np.random.default_rng(seed)
    for _ in range(shuffles):
        for _ in range(DRAWS):
            drawn = _shuffled(numbers, groups, generator)
            found = splits(drawn, groups, folds, seed)
            if all(len(set(drawn[train].tolist())) > 1 and len(held_out) for train, held_out in found):
                yield drawn, found
                break
        else:
            raise LensplugError("labels in random order leave one class to train on: give fewer folds, or more groups.")


def _shuffled(
    numbers: Int64[np.ndarray, " sample"], groups: Int64[np.ndarray, " sample"] | None, generator: np.random.Generator
) -> Int64[np.ndarray, " sample"]:
    if groups is None:
        return generator.permutation(numbers)
    _, first = np.unique(groups, return_index=True)
    of_group = numbers[first]
    if (of_group[groups] == numbers).all():
        exchanged: np.ndarray = generator.permutation(of_group)[groups]
        return exchanged
    return generator.permutation(numbers)
