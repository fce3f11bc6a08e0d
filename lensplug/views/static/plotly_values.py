"""Texts, numbers and colours of plotly, as matplotlib takes them."""

from __future__ import annotations

import html
import re
from base64 import b64decode
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensplug.errors import LensplugError
from lensplug.printable import printable

PIXEL = 0.75
"""Points in a pixel of a page."""


def plain(text: object) -> str:
    """What a reader of a plotly text sees: its few tags acted on or left out, its escapes undone, nothing unseen."""
    lines = re.sub(r"<br\s*/?>", "\n", str(text or ""))
    return printable(html.unescape(re.sub(r"</?(?:b|i|sub|sup|span)\b[^<>]*>", "", lines)), keep="\n")


def rgba(color: Any, opacity: float | int | None = None) -> tuple[float, float, float, float]:
    """A colour of plotly as four numbers from 0 to 1."""
    from matplotlib.colors import to_rgba

    numbers = re.fullmatch(r"rgba?\(([^)]*)\)", str(color).strip())
    if numbers:
        parts = [float(part) for part in numbers.group(1).split(",")]
        red, green, blue, alpha = (*(part / 255 for part in parts[:3]), parts[3] if len(parts) > 3 else 1.0)
    else:
        red, green, blue, alpha = to_rgba(str(color))
    return red, green, blue, alpha * (1.0 if opacity is None else opacity)


def numbers(values: Any) -> NDArray[np.float64]:
    """Numbers, with NaN where there are none; also as plotly packs them in a figure that was saved or copied."""
    if isinstance(values, dict) and "bdata" in values:
        flat = np.frombuffer(b64decode(values["bdata"]), dtype=values["dtype"])
        shape = values.get("shape")
        values = flat if shape is None else flat.reshape([int(side) for side in str(shape).split(",")])
    return np.array(np.asarray(values, dtype=object), dtype=np.float64)


def whiskers(error: Any) -> NDArray[np.float64]:
    """How far the whiskers of an `error_x` or `error_y` reach, `[2 point]`: below, above; nothing where not known."""
    above = numbers(error.array)
    below = above if error.symmetric is not False or error.arrayminus is None else numbers(error.arrayminus)
    return np.nan_to_num(np.stack([below, above])).clip(min=0)


def are_numbers(values: Any) -> bool:
    """Whether plotly takes these for numbers: texts that are numbers too, unless an axis says that it has names."""
    try:
        numbers(values)
    except (TypeError, ValueError):
        return False
    return True


def formatted(value: float | int, template: str | None) -> str:
    """A tick in the few formats of d3 that the views use.

    Raises:
        LensplugError: For another.
    """
    if not template:
        return f"{value:.10g}"
    if template == "d":
        return f"{value:.0f}"
    percent = re.fullmatch(r"\.(\d+)%", template)
    if percent:
        return f"{value:.{percent.group(1)}%}"
    short = re.fullmatch(r"\.(\d+)(~?)g|\.(\d+)~g", template)
    if short:
        return f"{value:.{short.group(1) or short.group(3)}g}"
    raise LensplugError(f"a static picture cannot format numbers as {template!r}.")
