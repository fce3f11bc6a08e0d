"""Many cases of each property, in this process; what came of them as rows of a table."""

from __future__ import annotations

import datetime
import math
import os
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

import fuzz.properties  # noqa: F401  registers them
from fuzz.case import PROPERTIES, Case

SEED_VARIABLE = "LENSPLUG_FUZZ_SEED"


@dataclass
class Row:
    """What came of the cases of one property."""

    name: str
    cases: int = 0
    failures: int = 0
    error: float = 0.0
    share: float = 0.0
    seconds: float = 0.0
    messages: list[str] = field(default_factory=list)
    """Of the first failures, with what to type to see each again."""

    def add(self, other: Row) -> None:
        self.cases += other.cases
        self.failures += other.failures
        self.error, self.share = max(self.error, other.error), max(self.share, other.share)
        self.seconds += other.seconds
        self.messages = (self.messages + other.messages)[:3]


def seed_of_today() -> int:
    """As the variable says, else the date: another one each day, the same all day."""
    return int(os.environ.get(SEED_VARIABLE) or datetime.date.today().strftime("%Y%m%d"))


def shared_out(cases: int, names: Iterable[str] | None = None) -> dict[str, int]:
    """How many of the cases each property gets, at least one."""
    chosen = [PROPERTIES[name] for name in (PROPERTIES if names is None else names)]
    total = sum(one.weight for one in chosen)
    return {one.name: math.ceil(cases * one.weight / total) for one in chosen}


def run_task(name: str, numbers: Iterable[int], seed: int, n_models: int) -> Row:
    """The numbered cases of one property."""
    row, began = Row(name), time.perf_counter()
    for number in numbers:
        case = Case(f"{seed}/{name}/{number}", f"{seed}", n_models)
        row.cases += 1
        try:
            PROPERTIES[name].check(case)
        except Exception as error:
            row.failures += 1
            if len(row.messages) < 3:
                again = (
                    f"PYTHONPATH=tests python -m fuzz --seed {seed} --models {n_models} --only '{name}' --case {number}"
                )
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{os.path.basename(last.filename)}:{last.lineno}"
                row.messages.append(f"{type(error).__name__}: {error}\n    at {where}; again: {again}")
        row.error, row.share = max(row.error, case.error), max(row.share, case.share)
    row.seconds = time.perf_counter() - began
    return row


def one_thread() -> None:
    """The models are tiny: threads would wait for each other."""
    torch.set_num_threads(1)
