"""What is drawn around the axes: the title, the legend, and color bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from lensplug.views.static.heat import has_bar
from lensplug.views.static.lines import DASHES
from lensplug.views.static.plotly_values import PIXEL, formatted, plain, rgba

Place = Callable[[float | int, float | int], tuple[float, float]]


def add_bars_of_colors(figure: Any, meshes: Sequence[Any], layout: go.Layout, place: Place) -> None:
    """One bar for each heat map that has one, and for each colour axis that several share."""
    drawn_axes: set[str] = set()
    rightmost = {trace.coloraxis: ax for trace, ax, _ in sorted(meshes, key=lambda one: one[1].get_position().x1)}
    for trace, ax, mesh in meshes:
        bar = trace.colorbar
        if trace.coloraxis:
            if trace.coloraxis in drawn_axes:
                continue
            drawn_axes.add(trace.coloraxis)
            bar, ax = layout[trace.coloraxis].colorbar, rightmost[trace.coloraxis]
        elif not has_bar(trace):
            continue
        _bar_of_colors(figure, ax, mesh, bar, place)


def _bar_of_colors(figure: Any, ax: Any, mesh: Any, bar: Any, place: Place) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    width, height = figure.get_size_inches() * figure.dpi
    thick, title = bar.thickness or 12, plain(bar.title.text)
    if bar.orientation == "h":
        edges = _edges(figure)
        start, end = place(0, 0)[0], place(1, 0)[0]
        long = (bar.len or 1) / width if bar.lenmode == "pixels" else (bar.len or 1) * (end - start)
        x = place(bar.x if bar.x is not None else 0.5, 0)[0] - (0 if bar.xanchor == "left" else long / 2)
        above = bar.yref != "container" and (bar.y is None or bar.y >= 1)
        y = edges[1] + 22 / height if above else edges[0] - (12 + thick) / height
        color_bar = figure.colorbar(mesh, cax=figure.add_axes((x, y, long, thick / height)), orientation="horizontal")
        color_bar.ax.xaxis.set_ticks_position("bottom")
        if title:
            color_bar.ax.set_xlabel(title, fontsize=11 * PIXEL, parse_math=False)
        ticks = color_bar.ax.xaxis
    else:
        at, low, high = ax.get_position(), place(0, 0)[1], place(0, 1)[1]
        if bar.len is None or bar.len >= 1:
            low, high = at.y0, at.y1
        elif bar.yanchor == "top":
            high = place(0, bar.y if bar.y is not None else 1)[1]
            low = high - bar.len * (place(0, 1)[1] - low)
        color_bar = figure.colorbar(mesh, cax=figure.add_axes((at.x1 + 14 / width, low, thick / width, high - low)))
        if title:
            color_bar.ax.set_ylabel(title, fontsize=11 * PIXEL, parse_math=False)
        ticks = color_bar.ax.yaxis
    ticks.set_major_locator(MaxNLocator(bar.nticks or 6))
    template = bar.tickformat
    ticks.set_major_formatter(FuncFormatter(lambda value, _: formatted(value, template or ".4g")))
    color_bar.ax.tick_params(labelsize=10 * PIXEL, length=2, width=0.5, pad=2)
    color_bar.outline.set_visible(False)
    if bar.tickvals is not None:
        color_bar.set_ticks(list(bar.tickvals))
        ticks.set_ticklabels([plain(text) for text in (bar.ticktext or bar.tickvals)], parse_math=False)


def add_legend(figure: Any, traces: Sequence[Any], layout: go.Layout, place: Place) -> None:
    """The names of bars and lines with their colours, above the axes; one for those that belong together."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    named = [one for one in traces if not isinstance(one, go.Heatmap)]
    has_legend = layout.showlegend is not False and (len(named) > 1 or any(one.showlegend for one in named))
    handles: dict[str, Any] = {}
    for one in named if has_legend else []:
        if one.showlegend is False or not one.name:
            continue
        if isinstance(one, go.Bar):
            color = one.marker.color if isinstance(one.marker.color, str) else "#4c78a8"
            edge = one.marker.line.color if isinstance(one.marker.line.color, str) else color
            mark: Any = Patch(facecolor=rgba(color), edgecolor=rgba(edge), linewidth=0.7)
        else:
            line = rgba(one.line.color or one.marker.color or "#636efa")
            mark = Line2D(
                [], [], color=line, linestyle=DASHES[one.line.dash or "solid"], linewidth=1.5, marker="o", markersize=3
            )
        handles.setdefault(plain(one.name), mark)
    if not handles:
        return
    width, height = figure.get_size_inches() * figure.dpi
    room = (place(1, 0)[0] - place(0, 0)[0]) * width
    columns = max(1, int(room / (44 + 7 * max(map(len, handles)))))
    legend = figure.legend(
        list(handles.values()), list(handles), loc="lower left", ncols=columns, frameon=False, fontsize=11 * PIXEL,
        bbox_to_anchor=(place(0, 0)[0], _edges(figure)[1] + 2 / height), borderaxespad=0, borderpad=0.2,
        handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def add_title(figure: Any, layout: go.Layout, place: Place) -> None:
    """The title over everything, and its notes below it in smaller letters."""
    height = figure.get_size_inches()[1] * figure.dpi
    lines = plain(layout.title.text).split("\n") if layout.title.text else []
    left = _edges(figure, side=True)[0]
    y = _edges(figure)[1] + 10 / height
    for line in reversed(lines):
        first = line is lines[0]
        size = 15 if first else 11.5
        color = "#22252a" if first else "#4d5661"
        figure.text(left, y, line, fontsize=size * PIXEL, color=color, va="bottom", parse_math=False)
        y += (size + 6) / height


def _edges(figure: Any, *, side: bool = False) -> tuple[float, float]:
    """The lowest and highest (or leftmost and rightmost) place that anything is drawn at."""
    box = figure.get_tightbbox(figure.canvas.get_renderer())
    width, height = figure.get_size_inches()
    return (box.x0 / width, box.x1 / width) if side else (box.y0 / height, box.y1 / height)
