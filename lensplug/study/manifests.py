"""Manifests: tables of examples in files, data frames and data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lensplug.errors import LensplugError

AT_ONCE = 256
"""Rows of a data set that are in memory at once, with their pictures."""
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("read_csv", {}),
    ".tsv": ("read_csv", {"sep": "\t"}),
    ".jsonl": ("read_json", {"lines": True}),
    ".parquet": ("read_parquet", {}),
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
        name, options = READERS[path.suffix.lower()]
        try:
            table: pd.DataFrame = getattr(pd, name)(path, **options)
        except (OSError, ValueError) as error:
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
