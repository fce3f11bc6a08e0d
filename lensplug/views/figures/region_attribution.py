"""What each region adds to a target: a grid of cells, or bars."""

from __future__ import annotations

import math

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.regions.region_attribution_result import RegionAttribution
from lensplug.validation.arguments import check_example, checked
from lensplug.views.figures.heatmap import GAPS, numbered
from lensplug.views.style import DIVERGING, figure, titled, visible

NAMED = 60
"""Up to this many bars have their names below them, turned."""


@checked
def region_attribution(result: RegionAttribution, *, example: int = 0) -> go.Figure:
    """The cells of a grid in their places, or a bar for each region; lines are standard errors.

    Over the picture itself: `views.image_overlay(result, inputs)`; over the sound: `views.sound_overlay`.

    Args:
        result: From `analysis.region_attribution`.
        example: Which example.

    Raises:
        LensplugError: If there is no such example.
    """
    check_example(example, len(result.names))
    names = result.names[example]
    values = result.values[example, : len(names)]
    fig = _bars(result, values, example) if result.grid is None else _cells(result, values, result.grid)
    what = {"image": "region of the picture", "audio": "span of the sound", "text": "part of the prompt"}[result.kind]
    titled(fig, f"What each {what} adds to the target", notes_of(result, example))
    return fig


def notes_of(result: RegionAttribution, example: int) -> str:
    """Full and none, and what the values leave over."""
    full, none, rest = (float(values[example]) for values in (result.full, result.none, result.residual))
    return (
        f"{result.provenance.convention}. All there {full:.3g}, all blanked {none:.3g} {result.unit}; of the difference"
        f" {full - none:+.3g} the values leave {rest:+.2g}"
    )


def _cells(result: RegionAttribution, values: Float[Tensor, " region"], grid: tuple[int, int]) -> go.Figure:
    rows, columns = grid
    largest = float(values.abs().max()) or 1.0
    few = max(rows, columns) <= 12
    heat = go.Heatmap(
        z=values.reshape(rows, columns).tolist(), zmin=-largest, zmax=largest, colorscale=DIVERGING,
        xgap=1 if max(grid) <= GAPS else 0, ygap=1 if max(grid) <= GAPS else 0,
        texttemplate="%{z:.2f}" if few else None,
        hovertemplate=f"row %{{y}}, column %{{x}}: %{{z:+.4g}} {result.unit}<extra></extra>",
        colorbar={"title": result.unit, "thickness": 12},
    )  # fmt: skip
    side = max(24, min(64, 480 // max(grid)))
    fig = figure(heat, title="", height=110 + side * rows, width=max(540, 180 + side * columns))
    fig.update_xaxes(title="column", dtick=1 if few else None, constrain="domain")
    fig.update_yaxes(title="row", autorange="reversed", dtick=1 if few else None, scaleanchor="x", constrain="domain")
    return fig


def _bars(result: RegionAttribution, values: Float[Tensor, " region"], example: int) -> go.Figure:
    names = list(result.names[example])
    if len(set(names)) < len(names):  # a word that the prompt has twice
        names = numbered(names, range(len(names)))
    names = [visible(name) for name in names]
    errors = [0.0 if math.isnan(error) else error for error in result.standard_error[example, : len(values)].tolist()]
    error_bars = (
        {"type": "data", "array": errors, "color": "#22252a", "thickness": 1.2, "width": 3} if any(errors) else None
    )
    bars = {
        "y": values.tolist(), "error_y": error_bars, "customdata": names,
        "marker": {"color": [DIVERGING[-1][1] if value >= 0 else DIVERGING[0][1] for value in values.tolist()]},
        "hovertemplate": f"%{{customdata}}: %{{y:+.4g}} {result.unit}<extra></extra>",
    }  # fmt: skip
    if result.spans_s is not None:
        start, end = result.spans_s[example, : len(values)].unbind(dim=1)
        fig = figure(
            go.Bar(x=((start + end) / 2).tolist(), width=(0.96 * (end - start)).tolist(), **bars), title="", height=320
        )
        fig.update_xaxes(title="seconds")
    else:
        fig = figure(go.Bar(x=list(range(len(values))), width=0.7, **bars), title="", height=340)
        if len(names) <= NAMED:
            turned = sum(map(len, names)) > 60
            fig.update_xaxes(tickvals=list(range(len(names))), ticktext=names, tickangle=-60 if turned else 0)
        fig.update_xaxes(range=[-0.6, max(len(names), 8) - 0.4], automargin=True)  # one region is no wall
    fig.update_yaxes(title=result.unit, gridcolor="#eceef0", zerolinecolor="#9a9ea6")
    return fig
