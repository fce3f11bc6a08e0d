"""Manifests: tables of examples in files, data frames and data sets."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lensplug.errors import LensplugError

AT_ONCE = 256
"""Rows of a data set that are in memory at once, with their pictures."""
TEXTS = ("prompt", "target", "key", "image", "images", "video", "videos", "audio")
"""Columns of a CSV that are texts whatever is in them; of others numbers are numbers."""


def _read_csv(path: Path, separator: str = ",") -> pd.DataFrame:
    """A CSV in which only an empty cell is missing ("None" and "NA" are answers), and every row has as many cells."""
    types = dict.fromkeys(TEXTS, str)
    return pd.read_csv(
        path, sep=separator, dtype=types, keep_default_na=False, na_values=[""], index_col=False, on_bad_lines="error"
    )


def _read_lines(path: Path) -> pd.DataFrame:
    """JSON Lines, whose texts stay texts."""
    with open(path, encoding="utf-8") as file:
        return pd.DataFrame([json.loads(line) for line in file if line.strip()])


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".tsv": lambda path: _read_csv(path, "\t"),
    ".jsonl": _read_lines,
    ".parquet": pd.read_parquet,
}


def read_manifest(source: Any) -> tuple[Iterable[pd.DataFrame] | None, Path]:
    """Tables of examples, one after another, and what their paths are relative to; None for what is no table.

    Raises:
        LensplugError: If it is a file that cannot be read.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.suffix.lower() not in READERS:
            raise LensplugError(
                f"{str(source)!r} is no manifest: expected a file that ends in {', '.join(READERS)}; for a folder of"
                " pictures study.add_folder(...)."
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with more cells than there are names
                table = READERS[path.suffix.lower()](path)
        except (OSError, ValueError, pd.errors.ParserWarning) as error:
            raise LensplugError(f"{str(source)!r} cannot be read: {error}.") from error
        return [table], path.resolve().parent
    if isinstance(source, pd.DataFrame):
        return [source], Path.cwd()
    if hasattr(source, "features") and hasattr(source, "column_names"):  # a datasets.Dataset
        return _of_data_set(source), Path.cwd()
    return None, Path.cwd()


def _of_data_set(source: Any) -> Iterator[pd.DataFrame]:
    """A `datasets.Dataset` as tables; images and sounds as the bytes of their files, not decoded."""
    for name, feature in source.features.items():
        if hasattr(feature, "decode"):
            source = source.cast_column(name, type(feature)(decode=False))
    for start in range(0, len(source), AT_ONCE):
        yield pd.DataFrame(source[start : start + AT_ONCE])
