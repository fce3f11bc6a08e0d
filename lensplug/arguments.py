"""Arguments as users give them, held against what is meant."""

from __future__ import annotations

from operator import index
from typing import Any

from lensplug.errors import LensplugError


def whole_number(value: Any, name: str) -> int:
    """A whole number of any integer type; no truth value, and nothing that would be rounded.

    Raises:
        LensplugError: If it is something else.
    """
    try:
        if not isinstance(value, bool):
            return index(value)
    except TypeError:
        pass
    raise LensplugError(f"{name} is {value!r}, expected a whole number.")
