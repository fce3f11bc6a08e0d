"""Bars: side by side, on each other, or from a base, upright or lying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lensplug.errors import LensplugError
from lensplug.views.static.axes import Axis
from lensplug.views.static.plotly_values import PIXEL, numbers, rgba, whiskers


def draw_bars(ax: Any, traces: Sequence[go.Bar], across: Axis, down: Axis, layout: go.Layout) -> None:
    """All bars of one pair of axes: how they stand is told by all of them together."""
    mode = layout.barmode or "group"
    if mode not in ("group", "stack", "overlay", "relative"):
        raise LensplugError(f"a static picture cannot draw bars in the mode {mode!r}.")
    lying = traces[0].orientation == "h"
    stands, reaches = (down, across) if lying else (across, down)
    space = 1 - (layout.bargap if layout.bargap is not None else 0.2)
    tops: dict[tuple[float, bool], float] = {}
    for index, trace in enumerate(traces):
        at = stands.at(trace.y if lying else trace.x, extent=False)
        long = numbers(trace.x if lying else trace.y)
        apart = float(np.diff(np.unique(at)).min()) if len(np.unique(at)) > 1 else 1.0
        width = (
            np.full(len(at), space * apart) if trace.width is None else np.broadcast_to(numbers(trace.width), len(at))
        )
        if mode == "group" and trace.width is None:
            width = width / len(traces)
            at = at + (index - (len(traces) - 1) / 2) * width
        base = np.zeros(len(at)) if trace.base is None else np.broadcast_to(numbers(trace.base), len(at)).copy()
        if mode in ("stack", "relative"):
            for i, (place, value) in enumerate(zip(at.tolist(), long.tolist(), strict=True)):
                base[i] += tops.get((place, value < 0), 0.0)
                tops[place, value < 0] = base[i] + value
        color = trace.marker.color
        listed = color is not None and not isinstance(color, str)
        shown = [rgba(one, trace.opacity) for one in color] if listed else rgba(color or "#4c78a8", trace.opacity)
        line = {
            "edgecolor": rgba(trace.marker.line.color or "white"),
            "linewidth": (trace.marker.line.width or 0) * PIXEL,
        }
        draw = ax.barh if lying else ax.bar
        draw(at, long, width, base, color=shown, zorder=2, **line)
        stands.reach(np.concatenate([at - width / 2, at + width / 2]))
        reaches.reach(np.concatenate([base, base + long]))
        error = trace.error_x if lying else trace.error_y
        if error.array is not None and error.visible is not False:
            ends = {"xerr" if lying else "yerr": whiskers(error)}
            place = (base + long, at) if lying else (at, base + long)
            ax.errorbar(*place, **ends, fmt="none", ecolor="#22252a", elinewidth=0.8, capsize=2, zorder=3)
