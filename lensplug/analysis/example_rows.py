"""A result as columns with one entry for each example, and back: how a study keeps results in tables.

The annotation of a field says where its examples are (`Float[Tensor, "example layer head"]`); texts have no axes, so a
class names the depth of the examples in them (`example_depth`). Such fields become columns. All others (classes,
options, provenance) are the same for every example and become a header, as JSON.

Which classes are present differs between examples: where a class of results names all labels of an axis
(`axis_labels`), columns have an entry for every label, NaN where it is absent, so that all columns of one analysis have
one shape.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, cast, get_args, get_origin

import numpy as np
import torch
from jaxtyping import AbstractArray
from torch import Tensor

from lensplug.analysis.combined import EXAMPLE
from lensplug.analysis.field_hints import field_hints
from lensplug.analysis.result import Result
from lensplug.analysis.saved_fields import decoded, encoded
from lensplug.errors import LensplugError

POSITIONS = ("pos", "key", "query")
"""Axes whose entries are other things in other prompts."""


@dataclass(frozen=True)
class Column:
    """One field of a kind of results, as a column of a table."""

    field: str
    axes: tuple[str, ...]
    """The names of its axes within one example; () for a single number or text."""
    is_text: bool
    is_whole: bool
    """Whether its numbers are whole numbers."""
    example_axis: int
    """Where the examples are; in texts, how deep."""


@dataclass(frozen=True)
class ExampleRows:
    """The results of some examples as columns."""

    columns: Mapping[str, Any]
    """Field -> an array `[example *axes]`, or a list of texts (nested lists of them)."""
    header: Mapping[str, Any]
    """What all examples share, as JSON."""


def columns_of(kind: type[Result]) -> tuple[Column, ...]:
    """The columns of a kind of results.

    Raises:
        LensplugError: If it has no examples, or a value for each position, which no two prompts share.
    """
    return _columns(cast(Hashable, kind))


@cache  # a study asks for each chunk, and annotations are resolved slowly
def _columns(kind: Any) -> tuple[Column, ...]:
    hints = field_hints(kind)
    columns = []
    for field_ in fields(kind):
        array = _array_hint(hints[field_.name])
        if array is not None and EXAMPLE in (names := array.dim_str.split()):
            axis = names.index(EXAMPLE)
            is_whole = "float32" not in array.dtypes
            columns.append(Column(field_.name, (*names[:axis], *names[axis + 1 :]), False, is_whole, axis))
        elif (depth := kind.example_depth.get(field_.name)) is not None:
            columns.append(Column(field_.name, ("list",) * (_nesting(hints[field_.name]) - 1), True, False, depth))
    if not columns:
        raise LensplugError(f"a {kind.__name__} has no examples: it cannot be kept with a row for each.")
    by_position = [column.field for column in columns if set(column.axes) & set(POSITIONS)]
    if by_position:
        raise LensplugError(
            f"a {kind.__name__} has a value for each position ({by_position[0]}), and position 5 of one prompt is"
            " nothing that position 5 of another is: measure what has one shape for all prompts."
        )
    return tuple(columns)


def to_rows(result: Result) -> ExampleRows:
    """A result as columns.

    Raises:
        LensplugError: If its kind cannot be kept so.
    """
    kind = type(result)
    values: dict[str, Any] = {}
    dtypes: dict[str, str] = {}
    sizes: dict[str, int] = {axis: len(labels) for axis, (_, labels) in kind.axis_labels.items()}
    absent: list[Column] = []
    for column in columns_of(kind):
        value = getattr(result, column.field)
        if column.is_text:
            values[column.field] = _texts_by_example(value, column.example_axis)
        elif value is None:
            absent.append(column)
        else:
            dtypes[column.field] = str(value.dtype).removeprefix("torch.")
            by_example = value.detach().cpu().movedim(column.example_axis, 0)
            values[column.field] = _with_every_label(result, column, by_example)
            sizes |= {EXAMPLE: len(by_example)} | dict(zip(column.axes, values[column.field].shape[1:], strict=True))
    for column in absent:  # no example has a label of this axis; or, where its size is not known, it was not measured
        if set(column.axes) & kind.axis_labels.keys() and set(column.axes) <= sizes.keys():
            values[column.field] = np.full([sizes[axis] for axis in (EXAMPLE, *column.axes)], np.nan)
            dtypes[column.field] = "float64"
    shared = {
        field_.name: encoded(getattr(result, field_.name))
        for field_ in fields(result)  # type: ignore[arg-type]
        if field_.name not in values and field_.name not in _label_fields(kind)
    }
    return ExampleRows(values, {"kind": kind.__name__, "dtypes": dtypes, "shared": shared})


def from_rows(kind: type[Result], rows: ExampleRows, *, every_label: bool = False) -> Result:
    """The result that `to_rows` made columns of.

    Args:
        kind: Its class.
        rows: Columns and header; those of several results of one analysis may be joined.
        every_label: Keep labels that no example has, with NaN; else they are left out.
    """
    values: dict[str, Any] = {name: decoded(value, {}) for name, value in rows.header["shared"].items()}
    columns = {column.field: column for column in columns_of(kind)}
    tensors = {
        name: torch.from_numpy(np.array(array)).to(getattr(torch, rows.header["dtypes"][name]))
        for name, array in rows.columns.items()
        if not columns[name].is_text
    }
    for axis, (label_field, labels) in kind.axis_labels.items():
        with_axis = [name for name in tensors if axis in columns[name].axes]
        present = torch.full((len(labels),), every_label)
        for name in with_axis:
            by_label = tensors[name].movedim(1 + columns[name].axes.index(axis), 0).flatten(1)
            present |= ~by_label.isnan().all(dim=1)
        values[label_field] = tuple(label for label, is_there in zip(labels, present.tolist(), strict=True) if is_there)
        for name in with_axis:
            place = 1 + columns[name].axes.index(axis)
            tensors[name] = tensors[name].index_select(place, present.nonzero()[:, 0])
            if not bool(present.any()):
                values[name] = None
                del tensors[name]
    for name, tensor in tensors.items():
        values[name] = tensor.movedim(0, columns[name].example_axis).contiguous()
    hints = field_hints(kind)
    for name, texts in rows.columns.items():
        if columns[name].is_text:
            values[name] = _examples_in_texts(texts, columns[name].example_axis, hints[name])
    return kind(**values)


def _with_every_label(result: Result, column: Column, values: Tensor) -> np.ndarray:
    """The values with an entry for every label of each axis, NaN for those that the result lacks."""
    for axis, (label_field, labels) in type(result).axis_labels.items():
        if axis in column.axes:
            place = 1 + column.axes.index(axis)
            index = torch.tensor([labels.index(label) for label in getattr(result, label_field)], dtype=torch.long)
            shape = [*values.shape[:place], len(labels), *values.shape[place + 1 :]]
            values = torch.full(shape, torch.nan, dtype=values.dtype).index_copy(place, index, values)
    return values.numpy()


def _label_fields(kind: type[Result]) -> set[str]:
    return {label_field for label_field, _ in kind.axis_labels.values()}


def _array_hint(hint: Any) -> type[AbstractArray] | None:
    for member in get_args(hint) or (hint,):
        if isinstance(member, type) and issubclass(member, AbstractArray):
            return member
    return None


def _nesting(hint: Any) -> int:
    """How many lists a text of this annotation is in."""
    return 1 + _nesting(get_args(hint)[0]) if get_origin(hint) in (list, tuple) else 0


def _texts_by_example(texts: Any, depth: int) -> list[Any]:
    """Nested texts with the examples outermost."""
    if depth == 0:
        return list(texts)
    inner = [_texts_by_example(each, depth - 1) for each in texts]
    return [list(of_example) for of_example in zip(*inner, strict=True)]


def _examples_in_texts(texts: list[Any], depth: int, hint: Any) -> Any:
    """The reverse, in the lists or tuples of an annotation."""
    nested = texts
    if depth:
        inner = zip(*texts, strict=True)
        nested = [_examples_in_texts(list(each), depth - 1, list) for each in inner]
    return _as_annotated(nested, hint)


def _as_annotated(texts: Any, hint: Any) -> Any:
    container = get_origin(hint)
    if container not in (list, tuple) or isinstance(texts, str):
        return texts
    return container(_as_annotated(each, get_args(hint)[0]) for each in texts)
