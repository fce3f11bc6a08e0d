"""Reading a heat map: what a figure shows at a point."""

from __future__ import annotations

from typing import Any

import numpy as np


def painted(trace: Any, x: float, y: float) -> float:
    """The value that a heat map has at a point."""
    column = np.searchsorted(np.asarray(trace.x), x, side="right") - 1
    row = np.searchsorted(np.asarray(trace.y), y, side="right") - 1
    return float(np.asarray(trace.z)[row, column])
