"""Means over the examples of a study, with their intervals: maps of heads, lines over layers, or bars."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lensplug.analysis.group_means import GroupMeans
from lensplug.errors import LensplugError
from lensplug.validation.arguments import checked
from lensplug.views.style import CATEGORIES, DIVERGING, PAPER_TO_DARK, figure, titled, visible

MAPS = 6
"""Maximum number of groups whose maps of heads are drawn; more are named in the title."""
BARS = 60
"""Maximum number of bars; of more rows those with the largest means."""


@checked
def group_means(result: GroupMeans, *, modality: str | None = None) -> go.Figure:
    """A map of layers and heads for each group; a line over layers with its interval for each; else bars.

    Args:
        result: From `study.result(...).mean(by=...)`.
        modality: Which class, where a result has several; "audio" or "image" by default, if present.

    Raises:
        LensplugError: If the result has no such modality.
    """
    table, of_class = of_modality(result.table, modality)
    if {"layer", "head"} <= set(result.labels):
        return _maps(result, table, of_class)
    return _lines(result, table) if "entry" in result.labels else _bars(result, table)


def of_modality(table: pd.DataFrame, modality: str | None) -> tuple[pd.DataFrame, str]:
    """The rows of one class, and how a title names it.

    Raises:
        LensplugError: If there is none of that name.
    """
    if "modality" not in table.columns:
        return table, ""
    present = list(dict.fromkeys(table.modality))
    chosen = modality or next((name for name in ("audio", "image") if name in present), present[0])
    if chosen not in present:
        raise LensplugError(f"modality is {chosen!r}, this result has {', '.join(present)}.")
    return table[table.modality == chosen], f" on {chosen}"


def _maps(result: GroupMeans, table: pd.DataFrame, of_class: str) -> go.Figure:
    groups = result.groups[:MAPS]
    counts = table.groupby("group")["count"].max()
    titles = [f"{visible(group)} ({counts.get(group, 0)})" for group in groups]
    columns = min(len(groups), 3)
    rows = -(-len(groups) // columns)
    spacing = {"horizontal_spacing": 0.06, "vertical_spacing": 0.16 / rows}
    fig = make_subplots(rows=rows, cols=columns, subplot_titles=titles, shared_yaxes=True, **spacing)
    largest = float(np.nanmax(table["mean"].abs()))
    signed = bool((table["mean"] < 0).any())
    for index, group in enumerate(groups):
        each = {
            name: table[table.group == group].pivot(index="layer", columns="head", values=name)
            for name in ("mean", "low", "high", "standard_error")
        }
        layers, heads = each["mean"].index.tolist(), each["mean"].columns.tolist()
        limits = np.stack([each["low"], each["high"], each["standard_error"]], axis=-1)
        fig.add_trace(
            go.Heatmap(
                z=each["mean"].to_numpy().round(4), x=heads, y=layers, customdata=limits.round(4),
                coloraxis="coloraxis",
                hovertemplate=(
                    f"{visible(group)}, layer %{{y}}, head %{{x}}: %{{z:.3f}} (%{{customdata[0]:.3f}} to"
                    " %{customdata[1]:.3f}; standard error %{customdata[2]:.3f})<extra></extra>"
                ),
            ),
            row=index // columns + 1, col=index % columns + 1,
        )  # fmt: skip
    height = rows * (70 + min(max(22 * len(layers), 120), 420)) + 60
    fig.update_layout(figure(title="", height=height).layout)
    fig.update_layout(
        coloraxis={
            "colorscale": DIVERGING if signed else PAPER_TO_DARK,
            "cmin": -largest if signed else 0,
            "cmax": largest,
            "colorbar": {"thickness": 10, "title": {"text": _words(result.number), "side": "right"}},
        }
    )
    fig.update_xaxes(title="head", dtick=1 if len(heads) <= 8 else None)
    fig.update_yaxes(autorange="reversed", dtick=1 if len(layers) <= 8 else None)
    fig.update_yaxes(title="layer", col=1)
    others = len(result.groups) - len(groups)
    more = f"; {others} further groups are not drawn" if others else ""
    titled(fig, f"Mean {_words(result.number)}{of_class}{_by(result)}", _notes(result) + more)
    return fig


def _lines(result: GroupMeans, table: pd.DataFrame) -> go.Figure:
    fig = figure(title="", height=380)
    varying = [name for name in result.labels if name != "entry" and table[name].nunique() > 1]
    for index, (key, rows) in enumerate(table.groupby(["group", *varying], sort=False)):
        name, color = visible(", ".join(map(str, key))), CATEGORIES[index % len(CATEGORIES)]
        up, down = rows.high - rows["mean"], rows["mean"] - rows.low
        fig.add_scatter(
            x=rows.entry.tolist(), y=rows["mean"].round(5).tolist(), mode="lines+markers", name=name,
            line={"color": color, "width": 2}, marker={"size": 5},
            error_y={"type": "data", "symmetric": False, "array": up.round(5).tolist(),
                     "arrayminus": down.round(5).tolist(), "thickness": 1, "width": 3},
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
    fig.update_layout(showlegend=len(fig.data) > 1)
    fig.update_xaxes(title="after layer", type="category")
    fig.update_yaxes(title=_words(result.number), gridcolor="#eceef0", zerolinecolor="#9a9ea6")
    titled(fig, f"Mean {_words(result.number)} by layer{_by(result)}", _notes(result))
    return fig


def _bars(result: GroupMeans, table: pd.DataFrame) -> go.Figure:
    rows = table.nlargest(BARS, "mean") if len(table) > BARS else table
    fig = figure(title="", height=150 + 22 * max(len(rows), 6))
    names = [name for name in ("group", *result.labels) if rows[name].nunique() > 1] or ["group"]
    labels = [visible(", ".join(map(str, row))) for row in rows[names].itertuples(index=False)]
    fig.add_bar(
        x=rows["mean"].round(5).tolist(), y=list(range(len(rows))), orientation="h", marker={"color": CATEGORIES[0]},
        error_x={"type": "data", "symmetric": False, "array": (rows.high - rows["mean"]).round(5).tolist(),
                 "arrayminus": (rows["mean"] - rows.low).round(5).tolist(), "thickness": 1, "width": 3},
        customdata=labels, hovertemplate="%{customdata}: %{x:.4f}<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(title=_words(result.number), gridcolor="#eceef0", zerolinecolor="#9a9ea6")
    fig.update_yaxes(tickvals=list(range(len(rows))), ticktext=labels, autorange="reversed")
    more = f"; the {BARS} largest of {len(table)}" if len(table) > BARS else ""
    titled(fig, f"Mean {_words(result.number)}{_by(result)}", _notes(result) + more)
    return fig


def _by(result: GroupMeans) -> str:
    return f", by {visible(result.group_by)}" if result.group_by else ""


def _notes(result: GroupMeans) -> str:
    counts = result.table.groupby("group")["count"].max()
    of = f"{int(counts.sum())} examples"
    return f"{of}; limits: {result.interval}" if result.interval else of


def _words(number: str) -> str:
    return number.replace("_", " ")
