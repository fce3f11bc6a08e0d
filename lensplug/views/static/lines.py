"""Lines, points and filled outlines."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from lensplug.errors import LensplugError
from lensplug.views.static.axes import Axis
from lensplug.views.static.plotly_values import PIXEL, numbers, rgba, whiskers

DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}
SYMBOLS = {"circle": "o", "square": "s", "diamond": "D", "cross": "P", "x": "X", "triangle-up": "^"}
STEPS = {"hv": "steps-post", "vh": "steps-pre", "hvh": "steps-mid"}
PLOTLY_BLUE = "#636efa"


def draw_scatter(ax: Any, trace: go.Scatter, across: Axis, down: Axis) -> None:
    """One line, with its points, whiskers and the area that it bounds."""
    mode = trace.mode or "lines+markers"
    if not set(mode.split("+")) <= {"lines", "markers", "none"}:
        raise LensplugError(f"a static picture cannot draw a line in the mode {mode!r}.")
    x, y = across.at(trace.x), down.at(trace.y)
    color = rgba(trace.line.color or trace.marker.color or PLOTLY_BLUE, trace.opacity)
    if trace.fill not in (None, "none"):
        area = rgba(trace.fillcolor, trace.opacity) if trace.fillcolor else (*color[:3], 0.5 * color[3])
        if trace.fill == "toself":
            ax.fill(x, y, facecolor=area, edgecolor="none", zorder=2)
        elif trace.fill == "tozeroy":
            ax.fill_between(x, y, 0, color=area, linewidth=0, zorder=2)
            down.reach([0.0])
        else:
            raise LensplugError(f"a static picture cannot fill {trace.fill!r}.")
    if (trace.line.dash or "solid") not in DASHES or (trace.marker.symbol or "circle") not in SYMBOLS:
        raise LensplugError(f"a static picture has no line {trace.line.dash!r} or no point {trace.marker.symbol!r}.")
    points = "markers" in mode
    size = trace.marker.size
    ax.plot(
        x, y, color=color, zorder=3,
        linestyle=DASHES[trace.line.dash or "solid"] if "lines" in mode else "none",
        linewidth=(2 if trace.line.width is None else trace.line.width) * PIXEL,
        drawstyle=STEPS.get(trace.line.shape, "default"),
        marker=SYMBOLS[trace.marker.symbol or "circle"] if points else None,
        markersize=(6 if size is None else float(numbers(size).max())) * PIXEL,
        markerfacecolor=rgba(trace.marker.color, trace.opacity) if isinstance(trace.marker.color, str) else color,
    )  # fmt: skip
    for error, name in ((trace.error_x, "xerr"), (trace.error_y, "yerr")):
        if error.array is not None and error.visible is not False:
            ends = {name: whiskers(error)}
            ax.errorbar(x, y, **ends, fmt="none", ecolor=color, elinewidth=0.8, capsize=2, zorder=3)
