"""Heat maps: cells between edges, a colour for each value, texts in the cells."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from lensplug.errors import LensplugError
from lensplug.views.static.axes import Axis
from lensplug.views.static.plotly_values import PIXEL, numbers, plain, rgba

RASTER = 400
"""From this many cells on, a picture of them is put into the drawing: it is smaller than as many shapes."""
FALLBACK: list[Any] = [[0.0, "#0d0887"], [0.5, "#cc4778"], [1.0, "#f0f921"]]
"""plotly's colours where a figure names none."""


def draw_heatmap(ax: Any, trace: go.Heatmap, across: Axis, down: Axis, layout: go.Layout) -> Any:
    """The cells of one heat map; what is not known is left out.

    Returns:
        matplotlib's mesh, whose array holds the values.
    """
    from matplotlib.colors import Normalize

    values = numbers(trace.z)
    x = _edges(across, trace.x, trace.x0, trace.dx, values.shape[1])
    y = _edges(down, trace.y, trace.y0, trace.dy, values.shape[0])
    scale, low, high = _scale(trace, layout, values)
    gap = max(trace.xgap or 0, trace.ygap or 0)
    mesh = ax.pcolormesh(
        x, y, np.ma.masked_invalid(values), cmap=_colors(scale, trace.opacity),
        norm=Normalize(low, high),
        edgecolors="white" if gap else "none", linewidth=gap * PIXEL, rasterized=values.size > RASTER, zorder=1,
        shading="flat", antialiased=bool(gap),
    )  # fmt: skip
    if trace.texttemplate:
        _write(ax, trace, mesh, x, y)
    return mesh


def has_bar(trace: go.Heatmap) -> bool:
    """Whether this trace has a color bar of its own."""
    return trace.coloraxis is None and trace.showscale is not False


def _edges(axis: Axis, at: Any, first: Any, step: Any, cells: int) -> NDArray[np.float64]:
    """Where cells begin and end: plotly takes edges, or middles, or the first middle and the distance."""
    if at is None:
        middles = (first or 0) + (1 if step is None else step) * np.arange(cells, dtype=float)
        half = (1 if step is None else step) / 2
        edges = np.append(middles - half, middles[-1] + half)
    else:
        middles = axis.at(at, extent=False)
        if len(middles) == cells + 1:
            edges = middles
        elif len(middles) != cells:
            raise LensplugError(f"a heat map has {cells} cells along an axis, and {len(middles)} places for them.")
        elif cells == 1:
            edges = np.array([middles[0] - 0.5, middles[0] + 0.5])
        else:
            between = (middles[1:] + middles[:-1]) / 2
            edges = np.concatenate([[2 * middles[0] - between[0]], between, [2 * middles[-1] - between[-1]]])
    axis.reach(edges)
    return edges


def _scale(trace: go.Heatmap, layout: go.Layout, values: NDArray[np.float64]) -> tuple[Any, float, float]:
    """Colours, and the values that have the first and the last one."""
    if trace.coloraxis:
        color_axis = layout[trace.coloraxis]
        scale, low, high, reverse = color_axis.colorscale, color_axis.cmin, color_axis.cmax, color_axis.reversescale
    else:
        scale, low, high, reverse = trace.colorscale, trace.zmin, trace.zmax, trace.reversescale
    finite = values[np.isfinite(values)]
    low = low if low is not None else float(finite.min()) if finite.size else 0.0
    high = high if high is not None else float(finite.max()) if finite.size else 1.0
    scale = [(at, color) for at, color in scale or FALLBACK]
    scale = [(1 - at, color) for at, color in reversed(scale)] if reverse else scale
    return scale, float(low), float(high) if high > low else float(low) + 1.0


def _colors(scale: Any, opacity: float | int | None) -> Any:
    """The colours with their transparency: matplotlib's `alpha` would replace it, and hide a picture below."""
    from matplotlib.colors import LinearSegmentedColormap

    steps = [(float(at), rgba(color, opacity)) for at, color in scale]
    made = LinearSegmentedColormap.from_list("plotly", steps, N=1024)
    made.set_bad((0, 0, 0, 0))
    return made


def _write(ax: Any, trace: go.Heatmap, mesh: Any, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Texts in the cells, dark or white as the cell is, as large as it has room for."""
    number = re.fullmatch(r"%\{z:([^{}]*)\}", trace.texttemplate)
    if number:
        texts = [[format(value, number.group(1)) for value in row] for row in numbers(trace.z).tolist()]
    elif trace.texttemplate == "%{text}":
        texts = [[plain(text) for text in row] for row in trace.text]
    else:
        raise LensplugError(f"a static picture cannot write the template {trace.texttemplate!r} into cells.")
    longest = max((len(text) for row in texts for text in row), default=1) or 1
    box = ax.get_window_extent()
    room = box.width * 72 / ax.figure.dpi / (len(x) - 1)
    tall = box.height * 72 / ax.figure.dpi / (len(y) - 1)
    size = min((trace.textfont.size or 11) * PIXEL, 0.8 * tall, max(5.0, 1.5 * room / longest))
    fits = max(2, int(room / (0.6 * size)))
    known = np.ma.getmaskarray(mesh.get_array()).reshape(len(y) - 1, len(x) - 1)
    colors = mesh.to_rgba(mesh.get_array()).reshape(len(y) - 1, len(x) - 1, 4)
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            red, green, blue, alpha = colors[row, column]
            light = known[row, column] or alpha * (0.299 * red + 0.587 * green + 0.114 * blue) + (1 - alpha) > 0.5
            ax.text(
                (x[column] + x[column + 1]) / 2, (y[row] + y[row + 1]) / 2,
                text if len(text) <= fits else text[: fits - 1] + "…", ha="center", va="center", fontsize=size,
                color="#22252a" if light else "white", parse_math=False, clip_on=True,
            )  # fmt: skip
