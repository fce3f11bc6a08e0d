"""The groups, pairs and clusters that the examples of a study are in, by a column of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import pandas as pd

from lensplug.analysis.result import Result
from lensplug.errors import LensplugError

MEDIA = "media"
"""The name of what tells pictures and sounds apart, by their bytes."""
MISSING = "(missing)"
"""The group of the examples that have no value in a column."""
Chunks: TypeAlias = Iterable[tuple[pd.DataFrame, Result]]
"""Examples, and their results."""


def names_in(examples: pd.DataFrame, column: str) -> list[str]:
    """A column of the examples as names; "media" for what tells their media apart.

    Raises:
        LensplugError: If there is no such column.
    """
    if column == MEDIA:
        alone = examples.id.tolist()
        return [" ".join(hashes) or one for hashes, one in zip(examples.sha256, alone, strict=True)]
    if column not in examples.columns:
        others = [name for name in examples.columns if name not in ("chunk", "part", "sha256", "size")]
        raise LensplugError(f"the examples have no column {column!r}: they have {', '.join(others)}, and 'media'.")
    return names_of(examples[column])


def names_of(values: Iterable[Any]) -> list[str]:
    """Values as the names of groups."""
    return [_name(value) for value in values]


def _name(value: Any) -> str:
    """A value as the name of a group: 1.0 is 1, which it was before a value was missing in its column."""
    if value is None or value != value:
        return MISSING
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
