"""Means over the examples of a study, with their intervals: maps of heads, lines over layers, or bars."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lensplug.analysis.group_means import GroupMeans
from lensplug.errors import LensplugError
from lensplug.validation.arguments import checked
from lensplug.views.figures.deletion_by_group import deletion_by_group
from lensplug.views.figures.group_layers import add_lines, color_of, layer_column, layers_down, lighter
from lensplug.views.figures.number_words import CONDITIONS, SHARES, mean_of, words
from lensplug.views.style import DIVERGING, PAPER_TO_DARK, figure, titled, visible

MAPS = 6
"""Maximum number of groups whose maps of heads are drawn; more are named in the title."""
BARS = 60
"""Maximum number of bars of a group; of more rows those with the largest means."""


@checked
def group_means(result: GroupMeans, *, modality: str | None = None) -> go.Figure:
    """A map of layers and heads for each group; lines over layers, or deletion curves, with intervals; else bars.

    Args:
        result: From `study.result(...).mean(by=...)`.
        modality: Which class, where a result has several; "audio" or "image" by default, if present.

    Raises:
        LensplugError: If the result has no such modality.
    """
    table, of_class = of_modality(result.table, modality)
    of_class = of_class.replace(" on ", " for ") if result.number == "preference" else of_class
    title = f"{mean_of(result.number)}{of_class}{{}}{_by(result)}"
    if {"layer", "head"} <= set(result.labels):
        return _maps(result, table, title.format(" by head"))
    if {"order", "fraction"} <= set(result.labels):
        return _deletion(result, title.format(" while positions are deleted"))
    if layer_column(table):
        return _lines(result, table, title.format(" by layer"))
    return _bars(result, table, title.format(""))


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
    return table[table.modality == chosen], f" on {'' if chosen in ('text', 'audio') else 'the '}{chosen}"


def notes_of(result: GroupMeans, *, what: str = "limits") -> str:
    """How many examples, and what the limits are."""
    counts = result.table.groupby("group")["count"].max().reindex(list(result.groups))
    examples = f"{int(counts.sum())} examples"
    if 1 < len(counts) <= MAPS:
        examples += f" ({', '.join(f'{visible(str(group))} {count}' for group, count in counts.items())})"
    return f"{examples}; {what}: {result.interval}" if result.interval else examples


def _maps(result: GroupMeans, table: pd.DataFrame, title: str) -> go.Figure:
    groups = result.groups[:MAPS]
    columns = min(len(groups), 3)
    rows = -(-len(groups) // columns)
    spacing = {"horizontal_spacing": 0.03, "vertical_spacing": 0.16 / rows}
    titles = [visible(group) for group in groups] if len(groups) > 1 else None
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
                coloraxis="coloraxis", xgap=1, ygap=1,
                hovertemplate=(
                    f"{visible(group)}, layer %{{y}}, head %{{x}}: %{{z:.3f}} (%{{customdata[0]:.3f}} to"
                    " %{customdata[1]:.3f}; standard error %{customdata[2]:.3f})<extra></extra>"
                ),
            ),
            row=index // columns + 1, col=index % columns + 1,
        )  # fmt: skip
    height = rows * (70 + min(max(22 * len(layers), 120), 420)) + 40
    fig.update_layout(figure(title="", height=height).layout)
    fig.update_layout(
        coloraxis={
            "colorscale": DIVERGING if signed else PAPER_TO_DARK,
            "cmin": -largest if signed else 0,
            "cmax": largest,
            "colorbar": {"thickness": 10, "title": {"text": words(result.number), "side": "right"}},
        }
    )
    fig.update_xaxes(dtick=1 if len(heads) <= 8 else None, showgrid=False, zeroline=False)
    fig.update_xaxes(title={"text": "head", "standoff": 4}, row=rows)
    fig.update_yaxes(autorange="reversed", dtick=1 if len(layers) <= 8 else None, showgrid=False, zeroline=False)
    fig.update_yaxes(title="layer", col=1)
    fig.update_annotations(font_size=13)
    others = len(result.groups) - len(groups)
    more = f"; {others} further groups are not drawn" if others else ""
    titled(fig, title, notes_of(result, what="intervals when pointed at") + more)
    fig.update_layout(margin={"t": fig.layout.margin.t + 18}, height=fig.layout.height + 18)
    return fig


def _lines(result: GroupMeans, table: pd.DataFrame, title: str) -> go.Figure:
    column = layer_column(table)
    assert column is not None
    fig = figure(title="", height=380)
    add_lines(fig, table, result.groups, column)
    layers_down(fig, table, column)
    _range(fig, result, table)
    fig.update_xaxes(title=words(result.number))
    titled(fig, title, notes_of(result, what="bands"))
    return fig


def _deletion(result: GroupMeans, title: str) -> go.Figure:
    fig, more = deletion_by_group(result)
    titled(fig, title, notes_of(result, what="bands") + more)
    fig.update_layout(margin={"t": fig.layout.margin.t + 18}, height=fig.layout.height + 18)
    return fig


def _bars(result: GroupMeans, table: pd.DataFrame, title: str) -> go.Figure:
    keys = table.groupby(list(result.labels), sort=False)["mean"].max() if result.labels else None
    dropped = 0
    if keys is not None and len(keys) > BARS:
        kept, dropped = keys.nlargest(BARS).index, len(keys) - BARS
        table = table.set_index(list(result.labels)).loc[kept].reset_index()
    # A bar for each row of labels and each group: groups are colors where there are labels, else rows.
    groups = result.groups
    name = _row_name(result)
    rows = list(dict.fromkeys(table.apply(name, axis=1))) if len(table) else []
    fig = figure(title="", height=130 + max(20 * len(table) + 14 * len(rows), 90))
    for group in groups:
        part = table[table.group == group]
        up, down = (part.high - part["mean"]).round(5), (part["mean"] - part.low).round(5)
        fig.add_bar(
            x=part["mean"].round(5).tolist(), y=part.apply(name, axis=1).tolist() if len(part) else [],
            orientation="h", name=visible(group),
            marker={"color": lighter(color_of(group, groups))}, showlegend=bool(result.labels) and len(groups) > 1,
            error_x={"type": "data", "symmetric": False, "array": up.tolist(), "arrayminus": down.tolist(),
                     "thickness": 1, "width": 3, "color": "#22252a"},
            customdata=list(zip(part.low.tolist(), part.high.tolist(), part["count"].tolist(), strict=True)),
            hovertemplate=(
                f"{visible(group)}, %{{y}}: %{{x:.3f}} (%{{customdata[0]:.3f}} to %{{customdata[1]:.3f}};"
                " %{customdata[2]} examples)<extra></extra>"
            ),
        )  # fmt: skip
    fig.update_layout(barmode="group" if result.labels else "overlay", bargap=0.25)
    fig.update_layout(legend={"traceorder": "normal"})
    fig.update_xaxes(title=words(result.number), gridcolor="#eceef0", zerolinecolor="#9a9ea6")
    fig.update_yaxes(type="category", categoryorder="array", categoryarray=rows, autorange="reversed", automargin=True)
    _range(fig, result, table)
    more = f"; the {BARS} largest of {BARS + dropped}" if dropped else ""
    titled(fig, title, notes_of(result) + more)
    fig.update_layout(title={"xref": "container", "x": 0, "pad": {"l": 12, "t": 46}})  # names of rows may be long
    return fig


def _row_name(result: GroupMeans) -> Callable[[pd.Series], str]:
    """What a row of bars is called: its labels, or its group."""
    varying = [label for label in result.labels if result.table[label].nunique() > 1] or list(result.labels[:1])
    return lambda row: visible(
        ", ".join(CONDITIONS.get(str(row[label]), str(row[label])) for label in varying) or str(row.group)
    )


def _range(fig: go.Figure, result: GroupMeans, table: pd.DataFrame) -> None:
    """From 0 to 1 for shares of examples; from 0 where nothing is below."""
    if result.number in SHARES:
        fig.update_xaxes(range=[0, 1.02], tickformat=".0%")
    elif not (table["mean"] < 0).any() and not (table.low < 0).any():
        fig.update_xaxes(rangemode="tozero")


def _by(result: GroupMeans) -> str:
    return f", by {visible(result.group_by)}" if result.group_by else ""
