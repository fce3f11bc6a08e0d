"""One random case: its choices, all from one seed, and what was compared in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class Differs(AssertionError):
    """What was found is not what the oracle says."""


@dataclass
class Case:
    """What a property draws from, and where it says what it found."""

    seed: str
    """All that is drawn follows from it."""
    pool: str
    """What the models of this run follow from."""
    n_models: int
    """How many models of a kind the run shares among its cases."""
    error: float = 0.0
    """The largest difference."""
    share: float = 0.0
    """The largest difference as a share of what is allowed."""
    random: random.Random = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(62))

    def integer(self, low: int, high: int) -> int:
        """From low to high, both among them."""
        return self.random.randint(low, high)

    def real(self, low: float, high: float) -> float:
        return self.random.uniform(low, high)

    def one_of(self, choices: Sequence[T]) -> T:
        return self.random.choice(choices)

    def some_of(self, choices: Sequence[T]) -> list[T]:
        """At least one, in any order."""
        return self.random.sample(choices, self.integer(1, len(choices)))

    def chance(self, probability: float = 0.5) -> bool:
        return self.random.random() < probability

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def close(self, found: Any, expected: Any, allowed: float, what: str) -> None:
        """Refuse a difference larger than `allowed`; NaN is equal to NaN, infinity to itself."""
        first, second = (_array(value) for value in (found, expected))
        if first.shape != second.shape:
            raise Differs(f"{what}: shape {first.shape}, expected {second.shape}")
        if not first.size:
            return
        with np.errstate(invalid="ignore"):
            off = np.where((first == second) | (np.isnan(first) & np.isnan(second)), 0.0, np.abs(first - second))
        worst = float(np.nan_to_num(off, nan=np.inf).max())
        self.error = max(self.error, worst)
        self.share = max(self.share, worst / allowed if worst else 0.0)
        if not worst <= allowed:
            at = np.unravel_index(int(np.nan_to_num(off, nan=np.inf).argmax()), off.shape)
            place = list(map(int, at))
            raise Differs(
                f"{what} at {place}: {first[at]!r}, expected {second[at]!r}, off by {worst:.3g} > {allowed:.3g}"
            )

    def same(self, found: Any, expected: Any, what: str) -> None:
        """Refuse any difference: of whole numbers, texts, copies."""
        if isinstance(found, Tensor) or isinstance(expected, Tensor | np.ndarray):
            equal = np.array_equal(_array(found), _array(expected), equal_nan=True)
        else:
            equal = found == expected
        if not equal:
            raise Differs(f"{what}: {found!r}, expected {expected!r}")


def _array(value: Any) -> np.ndarray:
    """As numbers of double precision."""
    return np.asarray(value.detach().cpu().double() if isinstance(value, Tensor) else value, dtype=np.float64)


@dataclass(frozen=True)
class Property:
    """What must hold of every case."""

    name: str
    check: Callable[[Case], None]
    weight: float
    """Its part of the cases, beside those of the others."""


PROPERTIES: dict[str, Property] = {}


def holds(weight: float = 1.0) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a property under the name of its function."""

    def register(check: Callable[[Case], None]) -> Callable[[Case], None]:
        name = check.__name__.replace("_", " ")
        PROPERTIES[name] = Property(name, check, weight)
        return check

    return register
