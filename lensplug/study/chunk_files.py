"""The files of results: `results/<pass>/<chunk>.parquet`, with a row for each example.

A chunk is done if and only if its file exists. A row has what was measured (numbers in lists, flattened; their axes and
everything that all examples share are in the table's metadata, under "lensplug"), or the error. The schema follows from
the analyses alone, so that a chunk in which everything failed has the same one. Results that are no rows (counts,
activations) are next to it, one file for each chunk and measurement, written first. Examples that are tried again get
another file, `<chunk>.retry-1.parquet`, whose rows replace those of before.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lensplug.analysis.example_rows import Column, ExampleRows, columns_of, to_rows
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.study.measurements import Measurement

FOLDER = "results"
RETRY = ".retry-"
SUFFIX = ".parquet"
WHOLE = ".safetensors"
METADATA = b"lensplug"
BOOKKEEPING = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("error_type", pa.string()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("node", pa.string(), nullable=False),
    ]
)
"""The columns that say how each example went."""


@dataclass(frozen=True)
class Failure:
    """Why an example has no results."""

    type: str
    message: str


@dataclass
class Outcome:
    """What became of the examples of a chunk."""

    results: list[tuple[list[str], dict[str, Result]]] = field(default_factory=list)
    """Ids of examples that ran together, and what was measured of them."""
    failures: dict[str, Failure] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def schema(measurements: Sequence[Measurement]) -> pa.Schema:
    """The schema of the rows of these measurements."""
    columns = [
        pa.field(f"{measurement.name}.{column.field}", _type(column))
        for measurement in measurements
        if measurement.way.rows
        for column in columns_of(measurement.kind)
    ]
    return pa.schema([*BOOKKEEPING, *columns])


def table(
    ids: Sequence[str], outcome: Outcome, measurements: Sequence[Measurement], attempts: Mapping[str, int], node: str
) -> pa.Table:
    """The rows of a chunk, in the order of `ids`.

    Args:
        ids: Its examples.
        outcome: What became of them.
        measurements: What was measured.
        attempts: How often each was tried.
        node: The machine.
    """
    arrays: dict[str, Any] = {
        "id": list(ids),
        "error": [outcome.failures[one].message if one in outcome.failures else None for one in ids],
        "error_type": [outcome.failures[one].type if one in outcome.failures else None for one in ids],
        "attempts": [attempts.get(one, 1) for one in ids],
        "seconds": [outcome.seconds.get(one, 0.0) for one in ids],
        "node": [node] * len(ids),
    }
    of_rows = [measurement for measurement in measurements if measurement.way.rows]
    headers: dict[str, Any] = {}
    for measurement in of_rows:
        rows = [(batch, to_rows(results[measurement.name])) for batch, results in outcome.results]
        for column in columns_of(measurement.kind):
            values = {
                one: value
                for batch, each in rows
                if column.field in each.columns
                for one, value in zip(batch, each.columns[column.field], strict=True)
            }
            arrays[f"{measurement.name}.{column.field}"] = _array([values.get(one) for one in ids], column)
        if rows:
            shapes = {name: list(np.shape(values)[1:]) for name, values in rows[0][1].columns.items()}
            headers[measurement.name] = {**rows[0][1].header, "shapes": shapes}
    described = schema(measurements).with_metadata({METADATA: json.dumps({"format": 1, "headers": headers})})
    return pa.Table.from_arrays(
        [pa.array(arrays[name], described.field(name).type) for name in described.names], schema=described
    )


def parse(content: bytes, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A file's table; of some columns only, where they are named.

    Raises:
        LensplugError: If the file is broken.
    """
    try:
        chosen = None if columns is None else list(columns)
        return pq.read_table(io.BytesIO(content), columns=chosen, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise LensplugError(
            f"{name!r} is broken ({error}): run the study again, which sets it aside and measures its examples anew."
        ) from error


def successes_in(content: bytes) -> int | None:
    """How many examples of a file did not fail; None where the file is broken, by its length or its checksums."""
    try:
        return int(parse(content, "")["error"].null_count)
    except LensplugError:
        return None


def is_whole(content: bytes) -> bool:
    """Whether counts or activations can be read: a file that was cut short cannot."""
    from lensplug.analysis.saved_results import from_bytes

    try:
        from_bytes(content, "")
    except LensplugError:
        return False
    return True


def header_of(rows: pa.Table, measurement: str) -> Mapping[str, Any] | None:
    """What the examples of a chunk share in a measurement; None where all of them failed."""
    header: Mapping[str, Any] | None = json.loads(rows.schema.metadata[METADATA])["headers"].get(measurement)
    return header


def example_rows(rows: pa.Table, measurement: Measurement) -> ExampleRows | None:
    """The columns of a measurement, of the examples that did not fail; None where all failed."""
    header = header_of(rows, measurement.name)
    if header is None:
        return None
    rows = rows.filter(pc.is_null(rows["error"]))
    columns: dict[str, Any] = {}
    for column in columns_of(measurement.kind):
        if column.field in header["shapes"]:
            values = rows[f"{measurement.name}.{column.field}"].combine_chunks()
            columns[column.field] = (
                values.to_pylist() if column.is_text else _unflattened(values, header["shapes"][column.field])
            )
    return ExampleRows(columns, header)


def joined(parts: Sequence[ExampleRows], kind: type[Result]) -> ExampleRows:
    """The rows of several chunks as one; lists of numbers that are shorter end with NaN."""
    columns: dict[str, Any] = {}
    for column in columns_of(kind):
        each = [part.columns[column.field] for part in parts if column.field in part.columns]
        if column.is_text:
            columns[column.field] = [text for texts in each for text in texts]
        elif each:
            longest = max(values.shape[1] for values in each) if each[0].ndim == 2 else None
            columns[column.field] = np.concatenate([_lengthened(values, longest) for values in each])
    return ExampleRows(columns, parts[0].header)


def _type(column: Column) -> pa.DataType:
    if column.is_text:
        kind = pa.string()
        for _ in column.axes:
            kind = pa.list_(kind)
        return kind
    number = pa.int64() if column.is_whole else pa.float64()
    return pa.list_(number) if column.axes else number


def _array(values: Sequence[Any], column: Column) -> pa.Array:
    """One entry for each example, None where it failed, as an array of the column's type."""
    if column.is_text or not column.axes:
        return pa.array([value.item() if isinstance(value, np.generic) else value for value in values], _type(column))
    dtype = np.int64 if column.is_whole else np.float64
    flat = [np.zeros(0, dtype) if value is None else np.asarray(value, dtype).ravel() for value in values]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in flat])]).astype(np.int32)
    missing = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(flat)), mask=missing)


def _unflattened(values: pa.Array, shape: Sequence[int]) -> np.ndarray:
    """The numbers of each example in their axes; lists of different lengths are filled up with NaN."""
    if not isinstance(values, pa.ListArray):
        return np.asarray(values)
    lengths = np.diff(np.asarray(values.offsets))
    flat = np.asarray(values.flatten())
    if len(shape) != 1:
        return flat.reshape(len(values), *shape)
    if len(set(lengths.tolist())) <= 1:
        return flat.reshape(len(values), -1)
    filled = np.full((len(values), int(lengths.max())), np.nan)
    filled[np.arange(filled.shape[1]) < lengths[:, None]] = flat
    return filled


def _lengthened(values: np.ndarray, length: int | None) -> np.ndarray:
    if length is None or values.shape[1] == length:
        return values
    filled = np.full((len(values), length), np.nan)
    filled[:, : values.shape[1]] = values
    return filled


def failures(rows: pa.Table) -> pd.DataFrame:
    """The rows that failed: id, error_type, error, attempts, seconds, node."""
    return rows.select(BOOKKEEPING.names).filter(pc.is_valid(rows["error"])).to_pandas()
