"""The axes of a plotly figure, each with its place, names and range, as axes of matplotlib."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from lensplug.errors import LensplugError
from lensplug.views.static.plotly_values import PIXEL, are_numbers, formatted, numbers, plain


@dataclass
class Axis:
    """One direction of one pair of axes; those that match share names and extents."""

    layout: Any
    """Its layout in plotly."""
    names: dict[str, int] = field(default_factory=dict)
    extents: list[float] = field(default_factory=list)

    def at(self, values: Any, *, extent: bool = True) -> NDArray[np.float64]:
        """Where values lie along it: numbers as they are, names by their order."""
        if self.layout.type not in (None, "-", "linear", "category", "log"):
            raise LensplugError(f"a static picture cannot draw an axis of the type {self.layout.type!r}.")
        values = numbers(values) if isinstance(values, dict) else list(values)
        if self.layout.type == "category" or not are_numbers(values):
            placed = np.array([self.names.setdefault(str(value), len(self.names)) for value in values], dtype=float)
        else:
            placed = numbers(values)
        if extent:
            self.reach(placed)
        return placed

    def reach(self, values: Any) -> None:
        """Values that must be seen where the axis has no range of its own."""
        finite = np.asarray(values, dtype=float)
        finite = finite[np.isfinite(finite)]
        if finite.size:
            self.extents += [float(finite.min()), float(finite.max())]

    def limits(self, *, margin: bool) -> tuple[float, float]:
        """Its two ends, the first at the left or below."""
        if self.layout.range is not None and self.layout.autorange in (None, False):
            low, high = numbers(self.layout.range).tolist()
            return low, high
        low, high = (min(self.extents), max(self.extents)) if self.extents else (0.0, 1.0)
        if self.layout.rangemode == "tozero":
            low, high = min(low, 0.0), max(high, 0.0)
        room = 0.05 * (high - low) if margin else 0.0
        low, high = low - (room if low != 0 or not margin else 0), high + (room if high != 0 or not margin else 0)
        low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
        return (high, low) if self.layout.autorange == "reversed" else (low, high)


class AllAxes:
    """The axes of a figure by plotly's names ("x", "y2")."""

    def __init__(self, fig: go.Figure) -> None:
        """Those of a figure, made when they are asked for."""
        self.layout = fig.layout
        self.axes: dict[str, Axis] = {}

    def __getitem__(self, name: str) -> Axis:
        if name not in self.axes:
            layout = self.layout[f"{name[0]}axis{name[1:]}"]
            if layout.overlaying:
                raise LensplugError("a static picture cannot draw axes that lie over others.")
            axis = Axis(layout)
            if layout.matches and layout.matches != name:
                shared = self[layout.matches]
                axis.names, axis.extents = shared.names, shared.extents
            self.axes[name] = axis
        return self.axes[name]


def finish(ax: Any, across: Axis, down: Axis, *, maps: bool, bars: str | None) -> None:
    """Ranges, ticks, grid and titles, when everything is drawn.

    Args:
        ax: Of matplotlib.
        across: The horizontal axis.
        down: The vertical one.
        maps: Whether a heat map fills them: then there is no room around it.
        bars: "v" or "h" where bars stand on an axis.
    """
    ax.set_xlim(*across.limits(margin=not maps and bars != "v"))
    ax.set_ylim(*down.limits(margin=not maps and bars != "h"))
    for side, axis, drawn_axis in (("x", across, ax.xaxis), ("y", down, ax.yaxis)):
        layout, ticks = axis.layout, _ticks(axis, getattr(ax, f"get_{side}lim")(), ax, side)
        if layout.visible is False:
            drawn_axis.set_visible(False)
            continue
        if ticks is not None:
            drawn_axis.set_ticks(ticks[0])
            drawn_axis.set_ticklabels(ticks[1], parse_math=False)
        elif layout.tickformat:
            from matplotlib.ticker import FuncFormatter

            template = layout.tickformat
            drawn_axis.set_major_formatter(
                FuncFormatter(lambda value, _, template=template: formatted(value, template))
            )
        size = (layout.tickfont.size or 11) * PIXEL
        ax.tick_params(axis=side, labelsize=size, length=0, pad=3)
        if layout.tickangle:
            ax.tick_params(axis=side, labelrotation=-layout.tickangle)
        if layout.showticklabels is False:
            ax.tick_params(axis=side, labelbottom=False, labelleft=False)
        if layout.title.text:
            drawn_axis.set_label_text(plain(layout.title.text), fontsize=12 * PIXEL, parse_math=False)
        if layout.gridcolor and layout.showgrid is not False:
            drawn_axis.grid(True, color=layout.gridcolor, linewidth=0.8)
    ax.set_axisbelow(True)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if across.layout.scaleanchor or down.layout.scaleanchor:
        ax.set_aspect("equal", adjustable="box", anchor="NW")


def _ticks(axis: Axis, ends: tuple[float, float], ax: Any, side: str) -> tuple[list[float], list[str]] | None:
    """Where ticks stand and what they say, where plotly's figure or the names tell it; as many as there is room for."""
    layout = axis.layout
    if layout.tickvals is not None:
        values = axis.at(layout.tickvals, extent=False).tolist()
        texts = [plain(text) for text in (layout.ticktext if layout.ticktext is not None else layout.tickvals)]
        inside = [(v, t) for v, t in zip(values, texts, strict=False) if min(ends) <= v <= max(ends)]
        return [v for v, _ in inside], [t for _, t in inside]
    if axis.names:
        box = ax.get_window_extent()
        room = (box.width if side == "x" else box.height) * 72 / ax.figure.dpi
        upright = side == "y" or layout.tickangle in (-90, 90)
        longest = 1.4 if upright else 0.65 * max(map(len, axis.names)) + 1
        each = (layout.tickfont.size or 11) * PIXEL * longest
        step = max(1, int(np.ceil(len(axis.names) * each / room)))
        chosen = list(axis.names.items())[::step]
        return [float(at) for _, at in chosen], [plain(name) for name, _ in chosen]
    if layout.dtick and isinstance(layout.dtick, int | float):
        low, high = sorted(ends)
        start = np.ceil((low - (layout.tick0 or 0)) / layout.dtick) * layout.dtick + (layout.tick0 or 0)
        at = np.arange(start, high + 1e-9, layout.dtick).tolist()
        return at, [formatted(value, layout.tickformat) for value in at]
    return None
