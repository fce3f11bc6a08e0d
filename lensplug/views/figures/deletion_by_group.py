"""Deletion curves over a data set: for each group the mean curve of each order, with its interval as a band."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from lensplug.analysis.group_means import GroupMeans
from lensplug.views.figures.number_words import words
from lensplug.views.style import figure, visible

ORDERS = {"most relevant first": "#c2541b", "least relevant first": "#2b5c8a", "random order": "#6b7078"}
"""The color of each order."""
PANELS = 6
"""Maximum number of groups that are drawn."""


def deletion_by_group(result: GroupMeans) -> tuple[go.Figure, str]:
    """A panel for each group; and what a title adds of groups that are not drawn.

    Args:
        result: The mean of deletion curves, by order and fraction.
    """
    groups = result.groups[:PANELS]
    columns = min(len(groups), 3)
    rows = -(-len(groups) // columns)
    titles = [visible(group) for group in groups] if len(groups) > 1 else None
    spacing = {"horizontal_spacing": 0.04, "vertical_spacing": 0.16 / rows}
    fig = make_subplots(rows=rows, cols=columns, subplot_titles=titles, shared_yaxes="all", **spacing)
    fig.update_layout(figure(title="", height=rows * 260 + 60).layout)
    for index, group in enumerate(groups):
        where = {"row": index // columns + 1, "col": index % columns + 1}
        _panel(fig, result, group, is_first=index == 0, where=where)
    fig.update_xaxes(range=[-2, 102], ticksuffix="%", gridcolor="#eceef0", zeroline=False)
    fig.update_xaxes(title={"text": "positions deleted", "standoff": 4}, row=rows)
    fig.update_yaxes(gridcolor="#eceef0", zeroline=False)
    fig.update_yaxes(title=words(result.number), col=1)
    fig.update_layout(legend={"orientation": "h", "x": 0, "y": -50 / (rows * 260), "yanchor": "top"})
    fig.update_layout(margin={"b": 96})
    fig.update_annotations(font_size=13)
    others = len(result.groups) - len(groups)
    return fig, f"; {others} further groups are not drawn" if others else ""


def _panel(fig: go.Figure, result: GroupMeans, group: str, *, is_first: bool, where: dict[str, int]) -> None:
    of_group = result.table[result.table.group == group]
    bands, lines = [], []
    for order, color in ORDERS.items():
        rows = of_group[of_group.order == order]
        if rows.empty:
            continue
        x = (100 * rows.fraction).round(3).tolist()
        if rows.low.notna().all():
            red, green, blue = hex_to_rgb(color)
            bands.append(
                go.Scatter(
                    x=x + x[::-1], y=rows.high.round(5).tolist() + rows.low.round(5).tolist()[::-1], mode="lines",
                    fill="toself", fillcolor=f"rgba({red}, {green}, {blue}, 0.2)", line={"width": 0, "color": color},
                    hoverinfo="skip", showlegend=False, legendgroup=order, name=order,
                )
            )  # fmt: skip
        lines.append(
            go.Scatter(
                x=x, y=rows["mean"].round(5).tolist(), mode="lines+markers", name=order, legendgroup=order,
                showlegend=is_first, line={"color": color, "width": 2}, marker={"size": 5},
                customdata=list(zip(rows.low.round(5), rows.high.round(5), rows["count"], strict=True)),
                hovertemplate=(
                    f"{visible(group)}, {order}<br>%{{x:.0f}}% deleted: %{{y:.3f}} (%{{customdata[0]:.3f}} to"
                    " %{customdata[1]:.3f}; %{customdata[2]} examples)<extra></extra>"
                ),
            )
        )  # fmt: skip
    for trace in (*bands, *lines):  # no band over a line
        fig.add_trace(trace, **where)
