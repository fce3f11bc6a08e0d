"""Differences between two groups of examples, or two checkpoints: which are more than chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lensplug.analysis.group_differences import GroupDifferences
from lensplug.validation.arguments import checked
from lensplug.views.figures.group_means import BARS, of_modality
from lensplug.views.style import DIVERGING, figure, titled, visible


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
    is_map = {"layer", "head"} <= set(result.labels)
    fig = _map(table, level) if is_map else _bars(result, table, level)
    found, rows = int((table.adjusted_p_value < level).sum()), len(table.difference.dropna())
    names = " − ".join(map(visible, result.names))
    marked = f"{found} of {rows} have an adjusted p-value below {level:g} ({'points' if is_map else 'dark'})"
    titled(fig, f"{result.number.replace('_', ' ')}{of_class}: {names}", f"{marked}; {result.convention}")
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
            colorscale=DIVERGING, zmin=-largest, zmax=largest,
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
    fig.update_xaxes(title="head", range=[-0.5, len(heads) - 0.5], dtick=1 if len(heads) <= 16 else None)
    fig.update_yaxes(title="layer", range=[len(layers) - 0.5, -0.5], dtick=1 if len(layers) <= 16 else None)
    return fig


def _bars(result: GroupDifferences, table: pd.DataFrame, level: float) -> go.Figure:
    rows = table.loc[table.difference.abs().nlargest(BARS).index.sort_values()] if len(table) > BARS else table
    fig = figure(title="", height=150 + 22 * max(len(rows), 6))
    names = [name for name in result.labels if rows[name].nunique() > 1] or list(result.labels)[:1]
    labels = [visible(", ".join(map(str, row))) for row in rows[names].itertuples(index=False)] if names else ["all"]
    colors = [DIVERGING[0][1] if p < level else "#b9c0c8" for p in rows.adjusted_p_value]
    fig.add_bar(
        x=rows.difference.round(5).tolist(), y=list(range(len(rows))), orientation="h", marker={"color": colors},
        error_x={"type": "data", "symmetric": False, "array": (rows.high - rows.difference).round(5).tolist(),
                 "arrayminus": (rows.difference - rows.low).round(5).tolist(), "thickness": 1, "width": 3},
        customdata=list(zip(labels, rows.adjusted_p_value.round(4).tolist(), strict=True)),
        hovertemplate="%{customdata[0]}: %{x:+.4f}, adjusted p %{customdata[1]}<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(title="difference", gridcolor="#eceef0", zerolinecolor="#9a9ea6")
    fig.update_yaxes(title=", ".join(names), tickvals=list(range(len(rows))), ticktext=labels, autorange="reversed")
    return fig
