"""The same analysis on two checkpoints, side by side: what does a training change?

Two results of one analysis (with and without pre-training of the projector, say) are aligned by their
labels (layer, head, modality, position, ...), and every number gets its difference, b - a. What is not the same
thing is not compared: other conventions, other layers, other prompts are refused.

    difference = analysis.compare(result_before, result_after)
    difference.largest(10)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lensplug.analysis.result import Provenance, Result
from lensplug.errors import LensplugError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """Two results of one analysis, number by number."""

    table: pd.DataFrame
    """The labels, and for each number `<name>_a`, `<name>_b`, `<name>_difference` (b - a); for each text that differs
    between the two, `<name>_a` and `<name>_b`."""
    labels: tuple[str, ...]
    """The columns that say what is measured."""
    numbers: tuple[str, ...]
    """What is measured; the first is what views draw."""
    analysis: str
    provenance_a: Provenance
    provenance_b: Provenance

    def __repr__(self) -> str:
        """What was compared, and on how many things."""
        return (
            f"Comparison({self.analysis}: {', '.join(self.numbers)}, {len(self.table)} rows;"
            f" {self.provenance_a.model} and {self.provenance_b.model})"
        )

    def largest(self, k: int = 10, *, number: str | None = None) -> pd.DataFrame:
        """The k rows in which a number (the first by default) changes most, either way."""
        column = f"{self.number(number)}_difference"
        order = self.table[column].abs().sort_values(ascending=False).index[:k]
        return self.table.loc[order].reset_index(drop=True)

    def number(self, name: str | None = None) -> str:
        """A number's name, checked; the first by default."""
        if name is not None and name not in self.numbers:
            raise LensplugError(f"{name!r} is no number of {self.analysis}: it has {', '.join(self.numbers)}.")
        return name or self.numbers[0]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each thing that was measured."""
        return self.table.copy()


def compare(result_a: Result, result_b: Result) -> Comparison:
    """Align two results of the same analysis and take differences, b - a.

    Args:
        result_a: Of the first checkpoint.
        result_b: Of the second.

    Raises:
        LensplugError: If they are of different analyses or conventions, or were measured on different things.
    """
    from pandas.api.types import is_numeric_dtype

    if type(result_a) is not type(result_b) or not type(result_a).label_columns:
        raise LensplugError(
            f"a {type(result_a).__name__} and a {type(result_b).__name__} cannot be compared: give two results of the"
            " same analysis."
        )
    a, b = result_a.provenance, result_b.provenance
    if a.convention != b.convention:
        raise LensplugError(f"the results have different conventions ({a.convention!r} and {b.convention!r}).")
    frame_a, frame_b = result_a.to_dataframe(), result_b.to_dataframe()
    labels = [name for name in type(result_a).label_columns if name in frame_a]
    _refuse_what_is_twice(frame_a, labels, "first")
    _refuse_what_is_twice(frame_b, labels, "second")
    merged = frame_a.merge(frame_b, on=labels, suffixes=("_a", "_b"))  # in the order of the first
    if not len(merged) == len(frame_a) == len(frame_b):
        raise LensplugError(_what_differs(frame_a, frame_b, labels))
    measured = [name for name in frame_a.columns if name not in labels]
    numbers = tuple(name for name in measured if is_numeric_dtype(frame_a[name]))
    kept = list(labels)
    for name in measured:
        kept += [f"{name}_a", f"{name}_b"]
        if name in numbers:
            merged[f"{name}_difference"] = merged[f"{name}_b"] - merged[f"{name}_a"]
            kept.append(f"{name}_difference")
    main = type(result_a).main_number
    numbers = (main, *(name for name in numbers if name != main))
    return Comparison(merged[kept], tuple(labels), numbers, a.analysis, a, b)


def _refuse_what_is_twice(frame: pd.DataFrame, labels: list[str], which: str) -> None:
    """What is there twice has no one partner."""
    twice = frame.duplicated(labels)
    if twice.any():
        raise LensplugError(
            f"the {which} result has {_in_words(frame[twice], labels)} twice: ask for each position once."
        )


def _what_differs(frame_a: pd.DataFrame, frame_b: pd.DataFrame, labels: list[str]) -> str:
    """Which rows are in one result only, and in which label that shows."""
    merged = frame_a[labels].merge(frame_b[labels], on=labels, how="outer", indicator=True)
    counts = merged["_merge"].value_counts()
    lonely = merged[merged["_merge"] != "both"]
    differing = []
    for name in labels:
        own = {"first": set(frame_a[name]), "second": set(frame_b[name])}
        first, second = own["first"] - own["second"], own["second"] - own["first"]
        only = [
            f"{min(values)!r} in the {which} only" for which, values in (("first", first), ("second", second)) if values
        ]
        if only:
            differing.append(f"{name} ({', '.join(only)})")
    seen = f" What differs is {'; '.join(differing)}." if differing else ""
    return (
        f"the results were not measured on the same things: {counts['left_only']} rows are in the first only,"
        f" {counts['right_only']} in the second only, such as {_in_words(lonely, labels)}.{seen} Run both checkpoints"
        " on the same inputs with the same options (positions, rows, target)."
    )


def _in_words(frame: pd.DataFrame, labels: list[str]) -> str:
    """The labels of the first row."""
    values = next(frame[labels].itertuples(index=False))  # a row as a Series would turn whole numbers into decimals
    return ", ".join(f"{name} {value}" for name, value in zip(labels, values, strict=True))
