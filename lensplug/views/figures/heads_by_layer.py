"""Heads by layer: the share of heads that look at each class, and their mean mass; layers as rows."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lensplug.analysis.attention.head_readings import HeadSpecialization
from lensplug.analysis.attention.heads_by_layer import HeadsByLayer
from lensplug.views.style import MODALITY_COLORS, figure, titled

DASHES = {"image: base": "dash", "image: tiles": "dot", "image: newline": "dashdot"}
NOTES = (
    "Left: the share of a layer's heads that look at each class (two thirds of their mass). Right: the mean mass of its"
    " heads; thin lines are chance. Whiskers: standard error over examples"
)


def heads_by_layer(result: HeadSpecialization | HeadsByLayer) -> go.Figure:
    """Left: stacked shares of heads. Right: mean mass on each class and on each view of the image.

    Args:
        result: From `analysis.head_specialization`, or its `by_layer()`.
    """
    lines = result.by_layer() if isinstance(result, HeadSpecialization) else result
    layers = list(range(len(lines.mass)))
    fig = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.1, column_widths=[0.5, 0.5])
    for index, name in enumerate(lines.labels):
        fig.add_trace(_bar(lines, index, name, layers), row=1, col=1)
    for index, name in enumerate(lines.classes):
        fig.add_trace(_line(lines, index, name, layers), row=1, col=2)
        if name not in DASHES:
            fig.add_trace(_chance(lines, index, name, layers), row=1, col=2)
    fig.update_layout(figure(title="", height=150 + 24 * max(len(layers), 6)).layout, barmode="stack", bargap=0.15)
    examples = f"{lines.examples} example{'s' if lines.examples > 1 else ''}"
    titled(fig, f"Where the heads of each layer look ({examples})", NOTES)
    legend = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "font": {"size": 11}}
    fig.update_layout(legend=legend, margin={"b": 90, "t": fig.layout.margin.t + 8})
    fig.update_xaxes(title={"text": "share of heads", "standoff": 4}, range=[0, 1], tickformat=".0%", row=1, col=1)
    fig.update_xaxes(
        title={"text": "mean mass", "standoff": 4}, range=[0, 1.02], gridcolor="#eceef0", zeroline=False, row=1, col=2
    )
    fig.update_yaxes(
        range=[len(layers) - 0.5, -0.5], dtick=1 if len(layers) <= 32 else 4, gridcolor="#f3f4f5", zeroline=False
    )
    fig.update_yaxes(title="layer", row=1, col=1)
    return fig


def _bar(lines: HeadsByLayer, index: int, name: str, layers: list[int]) -> go.Bar:
    share, error = lines.share[:, index], lines.share_standard_error[:, index]
    line = {"color": "#ffffff" if name != "nothing" else "#c9ccd1", "width": 1}
    return go.Bar(
        x=share.tolist(), y=layers, orientation="h", name=name, legendgroup=name,
        showlegend=name not in lines.classes and bool((share > 0).any()),
        marker={"color": MODALITY_COLORS[name], "line": line}, customdata=[_error(value) for value in error.tolist()],
        hovertemplate=f"layer %{{y}}: %{{x:.1%}}%{{customdata}} of the heads look at {name}<extra></extra>"
        if name in lines.classes
        else f"layer %{{y}}: %{{x:.1%}}%{{customdata}} of the heads: {name}<extra></extra>",
    )  # fmt: skip


def _line(lines: HeadsByLayer, index: int, name: str, layers: list[int]) -> go.Scatter:
    mass, error = lines.mass[:, index], lines.mass_standard_error[:, index]
    color = MODALITY_COLORS[name.partition(":")[0]]
    whisker = {"type": "data", "array": error.nan_to_num(0).tolist(), "thickness": 1, "width": 2, "color": color}
    return go.Scatter(
        x=mass.tolist(), y=layers, mode="lines+markers", name=name, legendgroup=name,
        line={"color": color, "width": 1.5 if name in DASHES else 2.5, "dash": DASHES.get(name, "solid")},
        marker={"size": 4 if name in DASHES else 6, "color": color}, error_x=whisker,
        customdata=[[_error(float(value)), float(lines.chance[layer, index])] for layer, value in enumerate(error)],
        hovertemplate=(
            f"layer %{{y}}, {name}: %{{x:.4f}}%{{customdata[0]}}, chance %{{customdata[1]:.4f}}<extra></extra>"
        ),
    )  # fmt: skip


def _chance(lines: HeadsByLayer, index: int, name: str, layers: list[int]) -> go.Scatter:
    return go.Scatter(
        x=lines.chance[:, index].tolist(), y=layers, mode="lines", showlegend=False, legendgroup=name,
        line={"color": MODALITY_COLORS[name], "width": 1}, opacity=0.45, hoverinfo="skip",
    )  # fmt: skip


def _error(value: float) -> str:
    return "" if value != value else f" ± {value:.4f}"
