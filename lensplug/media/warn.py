"""Warnings attributed to the user's line of code, however deep in the package they arise."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import jaxtyping

from lensplug.errors import LensplugWarning
from lensplug.printable import printable

INSIDE = (str(Path(__file__).parents[1]), str(Path(jaxtyping.__file__).parent))
"""This package, and what checks its shapes in tests."""


def warn_user(message: str) -> None:
    """Warn at the first line of the stack that is not of this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(printable(message), LensplugWarning, stacklevel=level)
