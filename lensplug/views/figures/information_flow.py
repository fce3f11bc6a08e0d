"""Information flow: what cutting each path costs the answer, by layer, with random keys as a control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from lensplug.analysis.interventions.flow_result import InformationFlow
from lensplug.validation.arguments import checked
from lensplug.views.style import CATEGORIES, DIVERGING, figure, titled, visible

MOST_LINES = 6
"""More paths are rows of a heat map: their lines would hide each other."""


@checked
def information_flow(result: InformationFlow) -> go.Figure:
    """A line for each path over the layers, with its control dashed; of more than 6 paths a heat map.

    Lines are means over examples with their 95 % bootstrap interval (of several examples); the band around a dashed
    line is from the smallest to the largest draw of its control.

    Args:
        result: From `analysis.information_flow`, or several of them combined.
    """
    fig = _lines(result) if len(result.paths) <= MOST_LINES else _cells(result)
    fig.update_xaxes(title="layer in the middle of the window", dtick=1 if len(result.layers) <= 16 else 4)
    count = len(result.examples)
    widths = sorted({last - first + 1 for first, last in result.windows})
    width = " to ".join(map(str, dict.fromkeys((widths[0], widths[-1]))))
    notes = (
        f"Relative change of the target's probability, {count} example{'s' * (count > 1)}, windows of {width}"
        f" layer{'s' * (widths[-1] != 1)}"
    )
    if len(result.paths) <= MOST_LINES and result.control.shape[2]:
        notes += "; dashed: as many random other keys" + _fewer(result)
    titled(fig, "What the answer loses when a path is cut", notes)
    return fig


def _fewer(result: InformationFlow) -> str:
    """Of which paths the control cuts fewer keys than the path, and how many."""
    fewer = [
        f"{visible(path)} {int(control)} for {int(keys):,}"
        for path, keys, control in zip(result.paths, result.keys[0], result.control_keys[0], strict=True)
        if control < keys
    ]
    of = " in the first example" if len(result.examples) > 1 else ""
    return f", or all that there are ({'; '.join(fewer)}{of})" if fewer else ""


def _lines(result: InformationFlow) -> go.Figure:
    table, layers = result.mean(), list(result.layers)
    traces = []
    for index, path in enumerate(result.paths):
        rows, color = table[table.path == path], CATEGORIES[index % len(CATEGORIES)]
        name = visible(path)
        if result.control.shape[2]:
            traces += _band(layers, rows.draws_low.to_numpy(), rows.draws_high.to_numpy(), color, path, 0.08)
            traces.append(
                go.Scatter(
                    x=layers, y=rows.control_change.tolist(), mode="lines", name=f"{name}: random keys",
                    line={"color": color, "width": 1.5, "dash": "dash"}, legendgroup=path, showlegend=False,
                    hovertemplate=f"{name}, random keys, layer %{{x}}: %{{y:.1f}} %<extra></extra>",
                )
            )  # fmt: skip
        traces += _band(layers, rows.low.to_numpy(), rows.high.to_numpy(), color, path, 0.18)
        traces.append(
            go.Scatter(
                x=layers, y=rows.change.tolist(), mode="lines+markers", name=name, legendgroup=path,
                line={"color": color, "width": 2}, customdata=rows[["first_layer", "last_layer"]].to_numpy().tolist(),
                hovertemplate=(
                    f"{name}, layers %{{customdata[0]}} to %{{customdata[1]}}: %{{y:.1f}} %<extra></extra>"
                ),
            )
        )  # fmt: skip
    fig = figure(*traces, title="", height=360)
    fig.update_yaxes(
        title="change of probability", ticksuffix=" %", gridcolor="#eceef0", zeroline=True, zerolinecolor="#9a9ea6"
    )
    fig.update_layout(legend={"orientation": "h", "y": -0.24, "x": 0}, margin={"b": 90})
    return fig


def _band(
    layers: Sequence[int], low: np.ndarray, high: np.ndarray, color: str, path: str, alpha: float
) -> list[go.Scatter]:
    """The area between two lines; none where there are no limits."""
    if np.isnan(low).any() or np.isnan(high).any():
        return []
    red, green, blue = hex_to_rgb(color)
    there, back = list(layers), list(layers)[::-1]
    return [
        go.Scatter(
            x=there + back, y=high.tolist() + low[::-1].tolist(), mode="lines", fill="toself", line={"width": 0},
            fillcolor=f"rgba({red}, {green}, {blue}, {alpha})", hoverinfo="skip", showlegend=False, legendgroup=path,
        )
    ]  # fmt: skip


def _cells(result: InformationFlow) -> go.Figure:
    values = result.change.mean(dim=0)
    most = max(1.0, min(100.0, float(values.abs().nan_to_num(0.0).max())))
    heat = go.Heatmap(
        z=values.tolist(), x=list(result.layers), y=[visible(path) for path in result.paths], zmin=-most, zmax=most,
        colorscale=DIVERGING, xgap=1, ygap=1, colorbar={"title": "change<br>in %", "thickness": 12},
        hovertemplate="%{y}, layer %{x}: %{z:.1f} %<extra></extra>",
    )  # fmt: skip
    fig = figure(heat, title="", height=150 + 22 * len(result.paths))
    fig.update_yaxes(autorange="reversed", automargin=True)
    return fig
