"""A plotly figure of the views as a figure of matplotlib: the same numbers, colours, names and axes.

When to use it: for a page without scripts, or a figure in a paper. What a pointer would show is not in it, sliders
and buttons are as they are at first (`states` has the steps of a slider).
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from lensplug.errors import LensplugError
from lensplug.validation.arguments import checked
from lensplug.views.static.axes import AllAxes, finish
from lensplug.views.static.bars import draw_bars
from lensplug.views.static.heat import draw_heatmap, has_bar
from lensplug.views.static.layout_items import draw_annotation, draw_image, draw_shape, images_of, names_of
from lensplug.views.static.library import house_style
from lensplug.views.static.lines import draw_scatter
from lensplug.views.static.title_and_legends import add_bars_of_colors, add_legend, add_title

DPI = 96
"""A pixel of plotly is a pixel of the picture."""


@checked
def draw(figure: go.Figure, *, width: int = 860) -> Any:
    """Draw it, in the state in which it opens.

    Args:
        figure: Of `lensplug.views`.
        width: In pixels, where the figure has none.

    Returns:
        A matplotlib Figure.

    Raises:
        LensplugError: If matplotlib is missing, or the figure has something that is not known traces_here.
    """
    with house_style():
        return _drawn(figure, width)


def _drawn(fig: go.Figure, width: int) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for trace in fig.data:
        if not isinstance(trace, go.Heatmap | go.Bar | go.Scatter):
            raise LensplugError(f"a static picture cannot draw a trace of the type {trace.type!r}.")
    layout = fig.layout
    width_px, height_px = layout.width or width, layout.height or 450
    margin = {side: getattr(layout.margin, side) for side in "lrtb"}
    left, right, top, bottom = (
        margin[side] if margin[side] is not None else usual
        for side, usual in zip("lrtb", (60, 20, 48, 48), strict=True)
    )
    drawn = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(drawn)
    traces = [trace for trace in fig.data if trace.visible in (None, True) and trace.opacity != 0]
    room_for_bar = (
        70
        if any(isinstance(one, go.Heatmap) and has_bar(one) and one.colorbar.orientation != "h" for one in traces)
        else 0
    )
    inner = width_px - left - right - room_for_bar, max(height_px - top - bottom, 40)

    def place(x: float | int, y: float | int) -> tuple[float, float]:
        """A place of the plot ("paper"), from 0 to 1, in the whole picture."""
        return (left + x * inner[0]) / width_px, (bottom + y * inner[1]) / height_px

    known, axes = AllAxes(fig), {}
    pairs = [(trace.xaxis or "x", trace.yaxis or "y") for trace in traces] + [
        names_of(one) for one in images_of(layout)
    ]
    for across, down in dict.fromkeys(pairs):
        ends = known[across].layout.domain or (0, 1), known[down].layout.domain or (0, 1)
        (x0, y0), (x1, y1) = place(ends[0][0], ends[1][0]), place(ends[0][1], ends[1][1])
        axes[across, down] = drawn.add_axes((x0, y0, x1 - x0, y1 - y0), facecolor="none")
    for image in images_of(layout):
        draw_image(axes[names_of(image)], image)
    meshes = []
    for (across, down), ax in axes.items():
        traces_here = [trace for trace in traces if (trace.xaxis or "x", trace.yaxis or "y") == (across, down)]
        bars = [trace for trace in traces_here if isinstance(trace, go.Bar)]
        if bars:
            draw_bars(ax, bars, known[across], known[down], layout)
        for trace in traces_here:
            if isinstance(trace, go.Heatmap):
                meshes.append((trace, ax, draw_heatmap(ax, trace, known[across], known[down], layout)))
            elif isinstance(trace, go.Scatter):
                draw_scatter(ax, trace, known[across], known[down])
    for (across, down), ax in axes.items():
        traces_here = [trace for trace in traces if (trace.xaxis or "x", trace.yaxis or "y") == (across, down)]
        orientations = {(trace.orientation or "v") for trace in traces_here if isinstance(trace, go.Bar)}
        maps = any(isinstance(trace, go.Heatmap) for trace in traces_here)
        finish(ax, known[across], known[down], maps=maps, bars=next(iter(orientations), None))
    for shape in layout.shapes:
        draw_shape(axes[names_of(shape)], shape)
    for note in layout.annotations:
        draw_annotation(drawn, axes, note, place)
    for ax in axes.values():
        ax.apply_aspect()
    add_bars_of_colors(drawn, meshes, layout, place)
    add_legend(drawn, traces, layout, place)
    add_title(drawn, layout, place)
    return drawn
