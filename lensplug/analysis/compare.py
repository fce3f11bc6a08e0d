"""Compare one analysis across checkpoints: what does training change?

Method:

1. Align results of the same analysis by their labels (layer, head, modality, position, ...). Results with different
   conventions, queries, layers or prompts are refused.
2. Take the difference of every number from the first result: d = b - a.
3. For means over examples, the standard error of d: for the same number n of examples it is paired, SE = s(d) / sqrt(n)
   over examples; otherwise SE = sqrt(SE_a² + SE_b²). Two checkpoints on the same prompts differ much less than the
   prompts do, so pairing is much tighter. (If the examples are in fact different, the paired formula still holds: the
   differences of independent examples vary as much as both samples together.)

When to use it: for two or more checkpoints of one architecture, run on the same prompts (with and without pre-training
of the projector, say).

When not to use it: for different architectures, whose layers and heads do not correspond, or for different prompts.
Heads are compared by index: after training from different seeds, head 3 of one model is not head 3 of the other. Among
hundreds of differences some exceed two standard errors by chance: correct for multiple comparisons.

Example:
    before = analysis.head_specialization(cache, inputs.modality, query=-1)
    after = analysis.head_specialization(cache, inputs.modality, query=-1)      # of the other checkpoint
    difference = analysis.compare(before, after, names=("before", "after"))
    difference.largest(10)
    views.comparison(difference)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.provenance import Provenance, refuse_other_making
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.printable import printable
from lensplug.validation.arguments import at_least, checked

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """Results of one analysis, number by number."""

    table: pd.DataFrame
    """The labels, and for each number `<number>_<name>` of each result and the differences from the first, under
    `difference_column(number, name)`; for each text that differs between results, `<text>_<name>`."""
    labels: tuple[str, ...]
    """The columns that say what is measured."""
    numbers: tuple[str, ...]
    """What is measured; the first is what views draw."""
    analysis: str
    names: tuple[str, ...]
    """Names of the results; the first is the reference of all differences."""
    provenances: tuple[Provenance, ...]

    @property
    def provenance_a(self) -> Provenance:
        """Provenance of the first result."""
        return self.provenances[0]

    @property
    def provenance_b(self) -> Provenance:
        """Provenance of the second result."""
        return self.provenances[1]

    def __repr__(self) -> str:
        """What was compared, and on how many things."""
        models = " and ".join(
            f"{name}: {provenance.model}" for name, provenance in zip(self.names, self.provenances, strict=True)
        )
        return f"Comparison({self.analysis}: {', '.join(self.numbers)}, {len(self.table)} rows; {printable(models)})"

    @checked
    def difference_column(self, number: str | None = None, name: str | None = None) -> str:
        """The column with a number's difference from the first result.

        Args:
            number: The first by default.
            name: Name of the other result; the second by default.
        """
        if name is not None and name not in self.names[1:]:
            raise LensplugError(f"{name!r} is not one of the compared results {', '.join(map(repr, self.names[1:]))}.")
        return _difference(self.number(number), name or self.names[1], self.names)

    @checked
    def largest(self, k: int = 10, *, number: str | None = None, name: str | None = None) -> pd.DataFrame:
        """The k rows in which a number (the first by default) changes most, either way.

        Args:
            k: How many.
            number: Which number.
            name: From the first result to which other; the second by default.
        """
        at_least(1, k=k)
        order = self.table[self.difference_column(number, name)].abs().sort_values(ascending=False).index[:k]
        return self.table.loc[order].reset_index(drop=True)

    @checked
    def number(self, name: str | None = None) -> str:
        """A number's name, checked; the first by default."""
        if name is not None and name not in self.numbers:
            raise LensplugError(f"{name!r} is no number of {self.analysis}: it has {', '.join(self.numbers)}.")
        return name or self.numbers[0]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each thing that was measured."""
        return self.table.copy()


@checked
def compare(result_a: Result, result_b: Result, *others: Result, names: Sequence[str] | None = None) -> Comparison:
    """Align results of the same analysis and take differences from the first, b - a.

    Args:
        result_a: Result of the first checkpoint, the reference.
        result_b: Result of the second checkpoint.
        *others: Results of further checkpoints.
        names: Names of the checkpoints in columns and figures; "a", "b", ... by default.

    Raises:
        LensplugError: If they are of different analyses, conventions or queries, or were measured on different things,
            or there is not one name for each.
    """
    from pandas.api.types import is_numeric_dtype

    results = (result_a, result_b, *others)
    called = _called(names, len(results))
    _refuse_other_kinds(results)
    refuse_other_making(results, verb="compared", may_differ=("model", "weights", "dtype"))
    frames = [result.to_dataframe() for result in results]
    labels = [name for name in type(result_a).label_columns if name in frames[0]]
    for frame, name in zip(frames, called, strict=True):
        _refuse_what_is_twice(frame, labels, name)
    merged, measured = _aligned(frames, called, labels)
    numbers = [name for name in measured if is_numeric_dtype(frames[0][name])]
    columns = list(labels)
    for number in measured:
        columns += [f"{number}_{name}" for name in called]
        if number in numbers:
            for name in called[1:]:
                column = _difference(number, name, called)
                merged[column] = merged[f"{number}_{name}"] - merged[f"{number}_{called[0]}"]
                columns.append(column)
    for number, error in type(result_a).standard_errors.items():
        for index, name in enumerate(called[1:], start=1):
            spread = _error_of_difference(results[0], results[index], number, frames[index], labels, merged)
            if spread is None:
                a, b = (merged[f"{error}_{result_name}"] for result_name in (called[0], name))
                spread = (a**2 + b**2) ** 0.5
            merged[_difference(error, name, called)] = spread
    main = type(result_a).main_number
    return Comparison(
        table=merged[columns],
        labels=tuple(labels),
        numbers=(main, *(name for name in numbers if name != main)),
        analysis=result_a.provenance.analysis,
        names=called,
        provenances=tuple(result.provenance for result in results),
    )


def _difference(number: str, name: str, names: Sequence[str]) -> str:
    return f"{number}_difference" if len(names) == 2 else f"{number}_{name}_difference"


def _called(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """A name for each result."""
    if names is None:
        return tuple(ascii_lowercase[index] if count <= 26 else str(index) for index in range(count))
    called = (names,) if isinstance(names, str) else tuple(names)
    if len(called) != count or len(set(called)) != count or not all(isinstance(name, str) and name for name in called):
        raise LensplugError(f"names is {names!r}, expected {count} different words, one for each result.")
    return called


def _refuse_other_kinds(results: Sequence[Result]) -> None:
    kinds = [type(result) for result in results]
    other_kind = next((kind for kind in kinds if kind is not kinds[0]), None)
    if other_kind is not None or not getattr(kinds[0], "label_columns", ()):
        raise LensplugError(
            f"a {kinds[0].__name__} and a {(other_kind or kinds[1]).__name__} cannot be compared: give results of the"
            " same"
            " analysis."
        )


def _aligned(frames: Sequence[pd.DataFrame], names: Sequence[str], labels: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """The rows of all results side by side, in the order of the first, and what is measured."""
    measured = [name for name in frames[0].columns if name not in labels]
    merged = frames[0][labels]
    for frame, name in zip(frames, names, strict=True):
        renamed = frame.rename(columns={number: f"{number}_{name}" for number in measured})
        joined = merged.merge(renamed, on=labels)
        if not len(joined) == len(frame) == len(frames[0]):
            raise LensplugError(_what_differs(frames[0], frame, labels, (names[0], name)))
        merged = joined
    return merged, measured


def _error_of_difference(
    first: Result, second: Result, number: str, frame: pd.DataFrame, labels: list[str], merged: pd.DataFrame
) -> Float[Tensor, " row"] | None:
    """The standard error of a mean's difference, example by example; None where the examples are no pairs."""
    a, b = (result.by_example().get(number) for result in (first, second))
    if a is None or b is None or len(a) != len(b):
        return None
    # The rows of the other result, in the order of the first.
    order = merged[labels].merge(frame[labels].assign(row=range(len(frame))), on=labels)["row"]
    b = b[:, torch.from_numpy(order.to_numpy().copy())]
    if not torch.equal(a.isnan(), b.isnan()):
        return None
    differences = (b - a).double()
    count = (~differences.isnan()).sum(dim=0)
    squares = (differences - differences.nanmean(dim=0)).square().nansum(dim=0)
    spread: Tensor = (squares / (count - 1).clamp(min=0) / count).sqrt().masked_fill(count < 2, torch.nan)
    return spread.float()


def _refuse_what_is_twice(frame: pd.DataFrame, labels: list[str], which: str) -> None:
    """What is there twice has no one partner."""
    twice = frame.duplicated(labels)
    if twice.any():
        raise LensplugError(f"result {which} has {_in_words(frame[twice], labels)} twice: ask for each position once.")


def _what_differs(frame_a: pd.DataFrame, frame_b: pd.DataFrame, labels: list[str], names: tuple[str, str]) -> str:
    """Which rows are in one result only, and in which label that shows."""
    merged = frame_a[labels].merge(frame_b[labels], on=labels, how="outer", indicator=True)
    counts = merged["_merge"].value_counts()
    lonely = merged[merged["_merge"] != "both"]
    differing = []
    for label in labels:
        first, second = set(frame_a[label]), set(frame_b[label])
        only = [
            f"{min(values)!r} in {which} only"
            for which, values in zip(names, (first - second, second - first), strict=True)
            if values
        ]
        if only:
            differing.append(f"{label} ({', '.join(only)})")
    differences = f" What differs is {'; '.join(differing)}." if differing else ""
    return (
        f"the results were not measured on the same things: {counts['left_only']} rows are in {names[0]} only,"
        f" {counts['right_only']} in {names[1]} only, such as {_in_words(lonely, labels)}.{differences} Run all"
        " checkpoints"
        " on the same inputs with the same options (positions, rows, target)."
    )


def _in_words(frame: pd.DataFrame, labels: list[str]) -> str:
    """The labels of the first row."""
    values = next(frame[labels].itertuples(index=False))  # a row as a Series would turn whole numbers into decimals
    return ", ".join(f"{name} {value}" for name, value in zip(labels, values, strict=True))
