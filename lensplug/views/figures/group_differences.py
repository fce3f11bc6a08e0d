"""Differences between two groups of examples, or two checkpoints: which are more than chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lensplug.analysis.group_differences import GroupDifferences
from lensplug.validation.arguments import checked
from lensplug.views.figures.group_layers import layer_column
from lensplug.views.figures.group_means import BARS, of_modality
from lensplug.views.figures.number_words import CONDITIONS, words
from lensplug.views.style import DIVERGING, figure, titled, visible

GREY = "#c9ccd1"
"""Of what may be chance."""


@checked
def group_differences(result: GroupDifferences, *, modality: str | None = None, level: float = 0.05) -> go.Figure:
    """A map of layers and heads, or bars with intervals; what is below the level, corrected, has a mark.

    Args:
        result: From `study.result(...).difference(...)` or `.compare(...)`.
        modality: Which class, where a result has several; "audio" or "image" by default, if present.
        level: Of the adjusted p-value.

    Raises:
        LensplugError: If the result has no such modality.
    """
    table, of_class = of_modality(result.table, modality)
    table = table[table.difference.notna()]
    is_map = {"layer", "head"} <= set(result.labels)
    fig = _map(table, level) if is_map else _bars(result, table, level)
    found, rows = int((table.adjusted_p_value < level).sum()), len(table)
    first, second = map(visible, result.names)
    marked = (
        f"{found} of {rows} {'heads' if is_map else 'rows'} have an adjusted p-value below {level:g}"
        f" ({'points' if is_map else 'in color'})"
    )
    said = words(result.number).partition(" (")[0]
    title = f"{said[0].upper()}{said[1:]}{of_class}: {first} less {second}"
    titled(fig, title, f"{marked}; {visible(result.convention)}")
    fig.update_xaxes(title="head" if is_map else f"difference in {words(result.number)}")
    return fig


def _map(table: pd.DataFrame, level: float) -> go.Figure:
    each = {
        name: table.pivot(index="layer", columns="head", values=name)
        for name in ("difference", "low", "high", "adjusted_p_value")
    }
    layers, heads = each["difference"].index.tolist(), each["difference"].columns.tolist()
    largest = float(np.nanmax(table.difference.abs().to_numpy(), initial=0.0)) or 1.0
    limits = np.stack([each["low"], each["high"], each["adjusted_p_value"]], axis=-1)
    fig = figure(
        go.Heatmap(
            z=each["difference"].to_numpy().round(5), x=heads, y=layers, customdata=limits.round(5),
            colorscale=DIVERGING, zmin=-largest, zmax=largest, xgap=1, ygap=1,
            colorbar={"thickness": 10, "title": {"text": "difference", "side": "right"}},
            hovertemplate=(
                "layer %{y}, head %{x}: %{z:+.3f} (%{customdata[0]:+.3f} to %{customdata[1]:+.3f}), adjusted p"
                " %{customdata[2]:.3f}<extra></extra>"
            ),
        ),
        title="", height=130 + min(max(24 * len(layers), 160), 520),
    )  # fmt: skip
    found = table[table.adjusted_p_value < level]
    fig.add_scatter(
        x=found["head"].tolist(), y=found.layer.tolist(), mode="markers", hoverinfo="skip", showlegend=False,
        marker={"symbol": "circle", "size": 6, "color": "#22252a"},
    )  # fmt: skip
    dtick_of = {True: 1, False: None}
    fig.update_xaxes(range=[-0.5, len(heads) - 0.5], dtick=dtick_of[len(heads) <= 16], showgrid=False, zeroline=False)
    fig.update_yaxes(
        title="layer", range=[len(layers) - 0.5, -0.5], dtick=dtick_of[len(layers) <= 16], showgrid=False,
        zeroline=False,
    )  # fmt: skip
    return fig


def _bars(result: GroupDifferences, table: pd.DataFrame, level: float) -> go.Figure:
    rows = table.loc[table.difference.abs().nlargest(BARS).index.sort_values()] if len(table) > BARS else table
    layer = layer_column(rows)
    fig = figure(title="", height=130 + max(22 * len(rows), 90))
    names = [name for name in result.labels if rows[name].nunique() > 1] or list(result.labels)[:1]
    labels = [
        visible(", ".join(CONDITIONS.get(str(entry), str(entry)) for entry in row))
        for row in rows[names].itertuples(index=False)
    ]
    labels = labels if names else ["all"] * len(rows)
    colors = [
        GREY if not p < level else DIVERGING[-1][1] if value > 0 else DIVERGING[0][1]
        for value, p in zip(rows.difference, rows.adjusted_p_value, strict=True)
    ]
    fig.add_bar(
        x=rows.difference.round(5).tolist(), y=list(range(len(rows))), orientation="h", marker={"color": colors},
        error_x={"type": "data", "symmetric": False, "array": (rows.high - rows.difference).round(5).tolist(),
                 "arrayminus": (rows.difference - rows.low).round(5).tolist(), "thickness": 1, "width": 3,
                 "color": "#22252a"},
        customdata=[
            (label, low, high, round(p, 4))
            for label, low, high, p in zip(labels, rows.low, rows.high, rows.adjusted_p_value, strict=True)
        ],
        hovertemplate=(
            "%{customdata[0]}: %{x:+.4f} (%{customdata[1]:+.4f} to %{customdata[2]:+.4f}), adjusted p %{customdata[3]}"
            "<extra></extra>"
        ),
    )  # fmt: skip
    fig.update_layout(bargap=0.25)
    fig.update_xaxes(gridcolor="#eceef0", zerolinecolor="#9a9ea6")
    shown = list(range(0, len(rows), 1 if len(rows) <= 40 else 4))
    title = {"entry": "after layer", "layer": "layer"}.get(layer or "") if len(names) == 1 else ", ".join(names)
    fig.update_yaxes(
        title=title or None, tickvals=shown, ticktext=[labels[index] for index in shown],
        range=[len(rows) - 0.5, -0.5], automargin=True,
    )  # fmt: skip
    return fig
