"""Deletion curves, and the rank correlation between methods."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.agreement import Agreement
from lensplug.analysis.interventions.deletion_curve import DeletionCurve
from lensplug.validation.arguments import checked
from lensplug.views.style import DIVERGING, figure, visible

COLORS = {"most relevant first": "#c2541b", "least relevant first": "#2b5c8a", "random": "#9a9ea6"}


@checked
def deletion_curve(result: DeletionCurve) -> go.Figure:
    """The target's log-probability against the fraction deleted, averaged over examples; random orders as a 95 % band.

    Args:
        result: From `analysis.deletion_curve`, or several of them combined.
    """
    x = (100 * result.fractions).tolist()
    traces = []
    if result.random.shape[1]:
        mean_of_draw = result.random.mean(dim=0)  # each draw averaged over examples
        spread = 1.96 * mean_of_draw.std(dim=0) if len(mean_of_draw) > 1 else mean_of_draw[0] * 0
        low, high = (mean_of_draw.mean(dim=0) - spread).tolist(), (mean_of_draw.mean(dim=0) + spread).tolist()
        band = {"fill": "toself", "fillcolor": "rgba(154, 158, 166, 0.25)", "line": {"width": 0}}
        # With few points plotly would draw markers.
        traces.append(
            go.Scatter(x=x + x[::-1], y=high + low[::-1], mode="lines", hoverinfo="skip", showlegend=False, **band)
        )
    curves = {"most relevant first": result.most_first, "least relevant first": result.least_first}
    if result.random.shape[1]:
        curves["random"] = result.random.mean(dim=1)
    areas = result.area
    for name, curve in curves.items():
        traces.append(
            go.Scatter(
                x=x, y=curve.mean(dim=0).tolist(), name=f"{name} (area {float(areas[name].mean()):.2f})",
                mode="lines+markers", line={"color": COLORS[name], "width": 2},
                hovertemplate=f"{name}<br>%{{x:.0f}}% deleted: %{{y:.3f}} nats<extra></extra>",
            )
        )  # fmt: skip
    count = len(result.deleted)
    fig = figure(*traces, title=f"What the answer loses ({count} example{'s' * (count > 1)})", height=340)
    fig.update_xaxes(title="positions deleted", ticksuffix="%", range=[-2, 102])
    fig.update_yaxes(title="log-probability (nats)", gridcolor="#eceef0")
    fig.update_layout(legend={"orientation": "h", "y": -0.28, "x": 0}, margin={"b": 90})
    return fig


@checked
def agreement(result: Agreement) -> go.Figure:
    """The rank correlation of every two methods.

    Args:
        result: From `analysis.agreement`.
    """
    names = [visible(name) for name in result.methods]
    values = result.rank_correlation.numpy()
    heat = go.Heatmap(
        z=values, x=names, y=names, zmin=-1, zmax=1, colorscale=DIVERGING, xgap=1, ygap=1,
        texttemplate="%{z:.2f}", hovertemplate="%{y} and %{x}: %{z:.3f}<extra></extra>",
        colorbar={"title": "rank<br>correlation", "thickness": 12},
    )  # fmt: skip
    title = f"Do the methods agree? ({result.count} positions)"
    fig = figure(heat, title=title, height=160 + 48 * len(names), width=300 + 64 * len(names))
    fig.update_yaxes(autorange="reversed")
    return fig
