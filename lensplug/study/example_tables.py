"""The examples of a study, in tables that are only ever added to.

Each call of `Study.add` writes one table, `examples/<number>-<hash>.parquet`, in which every example has its chunk:
adding more never divides old examples anew, and adding the same again changes nothing.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lensplug.errors import LensplugError
from lensplug.study.groups import names_of
from lensplug.study.media import MEDIA
from lensplug.study.new_examples import NewExample
from lensplug.study.storage import Storage

FOLDER = "examples"
FIXED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        *(pa.field(kind, pa.list_(pa.string()), nullable=False) for kind in MEDIA),
        pa.field("sha256", pa.list_(pa.string()), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("target", pa.string()),
        pa.field("key", pa.string()),
    ]
)
"""The columns that every table of examples has; others are the user's."""
COLUMN_TYPES = {"b": pa.bool_(), "i": pa.int64(), "u": pa.int64(), "f": pa.float64()}
"""NumPy's kind of a column of the user's -> its type; all others are texts."""


def add(storage: Storage, examples: Iterable[NewExample], chunk: int) -> int:
    """Write the examples that are not there yet as one table.

    Returns:
        How many were added.

    Raises:
        LensplugError: If two are the same, one is there with another target or other columns, or there is none.
    """
    written: list[str] = []
    try:
        return _add(storage, _on_disk(storage, examples, written), chunk)
    except BaseException:
        for name in written:  # media that no example refers to
            storage.remove(name)
        raise


def _on_disk(storage: Storage, examples: Iterable[NewExample], written: list[str]) -> list[NewExample]:
    """The examples, whose media are written one after another and never in memory together."""
    new = []
    for example in examples:
        on_disk, names = example.stored_in(storage)
        written += names
        new.append(on_disk)
    return new


def _add(storage: Storage, new: list[NewExample], chunk: int) -> int:
    if not new:
        raise LensplugError("there are no examples to add.")
    twice = [identifier for identifier, count in Counter(example.id for example in new).items() if count > 1]
    if twice:
        one = next(example for example in new if example.id == twice[0])
        raise LensplugError(
            f"{len(twice)} examples occur more than once, such as {one.prompt!r} with"
            f" {[medium.name for media in one.media.values() for medium in media]}: leave the copies out, or give each"
            " its own key (a column 'key')."
        )
    tables = _tables(storage)
    before = _frame(tables)
    _refuse_changed(before, new)
    there = set(before.id)
    new = [example for example in new if example.id not in there]
    if not new:
        return 0
    # Prompts of like length run together, the longest first: what does not fit in memory shows at once.
    ordered = sorted(new, key=lambda example: (-example.size, -len(example.prompt), example.id))
    table = _table(ordered, chunk)
    _refuse_other_types(tables.values(), table)
    name = f"{len(tables):05d}-{hashlib.sha256(''.join(table['id'].to_pylist()).encode()).hexdigest()[:8]}"
    storage.write(f"{FOLDER}/{name}.parquet", parquet(table))
    return len(new)


def read(storage: Storage) -> pd.DataFrame:
    """All examples, in the order of their chunks; `part` is the table that an example is in.

    An example that two processes added at the same time is taken once.
    """
    return _frame(_tables(storage))


def _tables(storage: Storage) -> dict[str, pa.Table]:
    """Name of a table -> what is in it.

    Raises:
        LensplugError: If one is broken.
    """
    tables = {}
    for name in storage.names(FOLDER):
        try:
            tables[name.removesuffix(".parquet")] = pq.read_table(io.BytesIO(storage.read(f"{FOLDER}/{name}")))
        except (pa.ArrowException, OSError) as error:
            raise LensplugError(f"'{FOLDER}/{name}' is broken ({error}): restore it; results refer to it.") from error
    return tables


def _frame(tables: Mapping[str, pa.Table]) -> pd.DataFrame:
    if not tables:
        return FIXED.append(pa.field("part", pa.string())).empty_table().to_pandas()
    parts = [table.append_column("part", pa.array([name] * len(table), pa.string())) for name, table in tables.items()]
    frame: pd.DataFrame = pa.concat_tables(parts, promote_options="permissive").to_pandas()
    return frame.drop_duplicates("id").reset_index(drop=True)


def user_columns(examples: pd.DataFrame) -> list[str]:
    """The columns that the user gave."""
    return [name for name in examples.columns if name not in {*FIXED.names, "part"}]


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def chunk_names(examples: pd.DataFrame) -> pd.Series:
    """The chunk that each example is in, as its files are called."""
    return examples.part.astype(str) + "-" + examples.chunk.map("{:05d}".format).astype(str)


def _table(examples: Sequence[NewExample], chunk: int) -> pa.Table:
    names = list(dict.fromkeys(name for example in examples for name in example.columns))
    rows: dict[str, list[Any]] = {
        "id": [example.id for example in examples],
        "chunk": [index // chunk for index in range(len(examples))],
        "prompt": [example.prompt for example in examples],
        **{kind: [[medium.name for medium in example.media.get(kind, ())] for example in examples] for kind in MEDIA},
        "sha256": [[medium.sha256 for kind in MEDIA for medium in example.media.get(kind, ())] for example in examples],
        "size": [example.size for example in examples],
        "target": [example.target for example in examples],
        "key": [example.key for example in examples],
    }
    schema = FIXED
    for name in names:
        values = pd.Series([example.columns.get(name) for example in examples])
        kind = pa.null() if values.isna().all() else COLUMN_TYPES.get(values.infer_objects().dtype.kind, pa.string())
        schema = schema.append(pa.field(name, kind))
        is_text = kind == pa.string()
        rows[name] = [None if pd.isna(value) else str(value) if is_text else value for value in values]
    return pa.Table.from_pydict(rows, schema=schema)


def _refuse_other_types(tables: Iterable[pa.Table], table: pa.Table) -> None:
    """Refuse a column that is of another type in the tables that are there: whole numbers and others go together.

    Raises:
        LensplugError: If there is one.
    """
    numbers = (pa.types.is_integer, pa.types.is_floating)
    for before in tables:
        for column in table.schema:
            other = before[column.name].type if column.name in before.column_names else column.type
            both_numbers = all(any(is_number(one) for is_number in numbers) for one in (other, column.type))
            if other != column.type and not both_numbers and pa.null() not in (other, column.type):
                raise LensplugError(
                    f"the column {column.name!r} holds {column.type} now and {other} in the examples that are there:"
                    " give values of one type, or another name."
                )


def _refuse_changed(before: pd.DataFrame, new: Sequence[NewExample]) -> None:
    """Refuse an example that is there already with another target or other columns.

    Raises:
        LensplugError: If there is one.
    """
    known = {row["id"]: row for row in before.to_dict("records")}
    for example in new:
        row = known.get(example.id)
        if row is None:
            continue
        for name, value in {"target": example.target, **example.columns}.items():
            there = row.get(name)
            if not (pd.isna(there) and pd.isna(value)) and names_of([there]) != names_of([value]):
                raise LensplugError(
                    f"the example {example.prompt!r} is in the study with {name}={there!r}, and is now given with"
                    f" {value!r}. Examples are never changed: give it another key, or begin another study."
                )
