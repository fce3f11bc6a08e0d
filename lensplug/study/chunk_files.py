"""The files of results: `results/<pass>/<chunk>.parquet`, with a row for each example.

A chunk is done if and only if its file exists. A row has what was measured (numbers in lists, flattened; their axes and
everything that all examples share are in the table's metadata, under "lensplug"), its names (`measured`), and the error
of what could not be. The schema follows from the analyses alone, so that a chunk in which everything failed has the
same one. Results that are no rows (counts, activations) are next to it, one file for each chunk and measurement,
written first. Examples that are tried again get another file, `<chunk>.retry-1.parquet`, whose rows have what those of
before lack, and another error or none.
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
MEASURED = "measured"
"""The column with the names of what a row has; older files have none, and rows without an error have everything."""
BOOKKEEPING = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("error_type", pa.string()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("node", pa.string(), nullable=False),
        pa.field(MEASURED, pa.list_(pa.string())),
    ]
)
"""The columns that say how each example went."""
OF_FAILURES = ["id", "error_type", "error", "attempts", "seconds", "node"]


@dataclass(frozen=True)
class Failure:
    """Why an example lacks a measurement."""

    type: str
    message: str


@dataclass
class Outcome:
    """What became of the examples of a chunk."""

    results: list[tuple[list[str], dict[str, Result]]] = field(default_factory=list)
    """Ids of examples that ran together, and what was measured of them; some of it may be in another entry."""
    failures: dict[str, dict[str, Failure]] = field(default_factory=dict)
    """Id -> measurement -> why it failed."""
    seconds: dict[str, float] = field(default_factory=dict)

    def failed(self, example: str, measurements: Sequence[Measurement], failure: Failure) -> None:
        """Measurements of an example failed."""
        self.failures.setdefault(example, {}).update({one.name: failure for one in measurements})

    def merge(self, other: Outcome) -> None:
        """What became of other examples, or of others of their measurements."""
        self.results += other.results
        for example, failures_of_example in other.failures.items():
            self.failures.setdefault(example, {}).update(failures_of_example)
        self.seconds |= other.seconds

    def with_results(self, measurement: Measurement) -> list[tuple[list[str], Result]]:
        """Ids and results of one measurement, in the order of the examples."""
        return [(ids, results[measurement.name]) for ids, results in self.results if measurement.name in results]


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
    errors = {one: _in_one(failed, measurements) for one, failed in outcome.failures.items()}
    arrays: dict[str, Any] = {
        "id": list(ids),
        "error": [errors[one].message if one in errors else None for one in ids],
        "error_type": [errors[one].type if one in errors else None for one in ids],
        "attempts": [attempts.get(one, 1) for one in ids],
        "seconds": [outcome.seconds.get(one, 0.0) for one in ids],
        "node": [node] * len(ids),
    }
    measured = {one.name: {each for batch, _ in outcome.with_results(one) for each in batch} for one in measurements}
    arrays[MEASURED] = [[name for name, having in measured.items() if one in having] for one in ids]
    of_rows = [measurement for measurement in measurements if measurement.way.rows]
    headers: dict[str, Any] = {}
    for measurement in of_rows:
        rows = [(batch, to_rows(result)) for batch, result in outcome.with_results(measurement)]
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
        chosen = columns and [name for name in columns if name != MEASURED or name in _names(content)]
        return pq.read_table(io.BytesIO(content), columns=chosen, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise LensplugError(
            f"{name!r} is broken ({error}): run the study again, which sets it aside and measures its examples anew."
        ) from error


def measured_in(content: bytes, measurements: Sequence[Measurement]) -> set[str] | None:
    """The measurements that some example of a file has; None where it is broken, by its length or its checksums."""
    try:
        rows = parse(content, "")
    except LensplugError:
        return None
    return {one.name for one in measurements if any(has(rows, one))}


def measured_of(content: bytes, name: str, measurements: Sequence[Measurement]) -> dict[str, set[str]]:
    """Id -> the measurements that it has in a file.

    Raises:
        LensplugError: If the file is broken.
    """
    rows = parse(content, name, ["id", "error", MEASURED])
    having = {one.name: has(rows, one) for one in measurements}
    return {
        example: {name for name, of_rows in having.items() if of_rows[index]}
        for index, example in enumerate(rows["id"].to_pylist())
    }


def has(rows: pa.Table, measurement: Measurement) -> list[bool]:
    """Which rows have a measurement."""
    if MEASURED not in rows.column_names:
        return [error is None for error in rows["error"].to_pylist()]
    return [measurement.name in (names or ()) for names in rows[MEASURED].to_pylist()]


def with_it(rows: pa.Table, measurement: Measurement) -> pa.Table:
    """The rows that have a measurement."""
    return rows.filter(pa.array(has(rows, measurement), pa.bool_()))


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
    """The columns of a measurement, of the examples that have it; None where it failed for all."""
    header = header_of(rows, measurement.name)
    if header is None:
        return None
    rows = with_it(rows, measurement)
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


def _names(content: bytes) -> list[str]:
    return list(pq.read_schema(io.BytesIO(content)).names)


def _in_one(failed: Mapping[str, Failure], measurements: Sequence[Measurement]) -> Failure:
    """The failures of an example in one row: each names its measurement, unless all failed alike."""
    named = [(one.name, failed[one.name]) for one in measurements if one.name in failed]
    first = named[0][1]
    if len(named) == len(measurements) and {one for _, one in named} == {first}:
        return first
    each = [one.message if one.message.startswith(f"{name}: ") else f"{name}: {one.message}" for name, one in named]
    return Failure(first.type, "; ".join(each))


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
    """The rows that lack something: id, error_type, error, attempts, seconds, node."""
    return rows.select(OF_FAILURES).filter(pc.is_valid(rows["error"])).to_pandas()
