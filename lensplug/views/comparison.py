"""Two checkpoints side by side, and what is different between them."""

from __future__ import annotations

from textwrap import wrap

import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from lensplug.analysis.compare import Comparison
from lensplug.errors import LensplugError
from lensplug.views.blocks import block_means, block_size
from lensplug.views.style import DIVERGING, figure, visible

MAPS = (("layer", "head"), ("entry", "position"), ("row", "pos"), ("query", "key"))
"""Pairs of labels that are drawn as a map: what goes down, what goes across."""
CELLS = 120
"""A larger map is drawn in blocks, each its mean."""
BARS = 400
"""Of what is no map, the rows with the largest differences are drawn, at most so many."""
NAMED, LENGTH = 36, 24
"""So many bars are named, by the labels that are no longer than this: the rest is told when pointed at."""
COLORS = ("#9aa5b1", "#12355b")


def comparison(
    result: Comparison,
    *,
    number: str | None = None,
    names: tuple[str, str] = ("a", "b"),
    modality: str | None = None,
    example: int = 0,
) -> go.Figure:
    """A map for each checkpoint and for the difference (layer x head, layer x position); bars for what has one axis.

    Args:
        result: From `analysis.compare`.
        number: What to draw, one of `result.numbers`; the first by default.
        names: What to call the two checkpoints.
        modality: Of a result that has several, which map; "audio" or "image" where there is one.
        example: Of a result that has several, which map. Bars are of all examples.

    Raises:
        LensplugError: If the result has no such number, modality or example.
    """
    number = result.number(number)
    for down, across in MAPS:
        # One row of a rollout is one line of numbers: bars tell it better.
        if {down, across} <= set(result.labels) and (
            across == "head" or result.table[[down, across]].nunique().min() > 1
        ):
            return _maps(result, number, names, (down, across), modality, example)
    return _bars(result, number, names)


def _maps(
    result: Comparison,
    number: str,
    names: tuple[str, str],
    axes: tuple[str, str],
    modality: str | None,
    example: int,
) -> go.Figure:
    table, title = _chosen(result, modality, example)
    downs, acrosses = (list(dict.fromkeys(table[axis])) for axis in axes)
    size = block_size(max(len(downs), len(acrosses)), CELLS)
    maps = []
    for end in ("a", "b", "difference"):
        values = table.pivot(index=axes[0], columns=axes[1], values=f"{number}_{end}").loc[downs, acrosses]
        maps.append(block_means(torch.tensor(values.to_numpy(dtype=float)), size).numpy().round(4))
    gap = 1 if max(maps[0].shape) <= 24 else 0  # between many cells, lines are all that is seen
    both = torch.tensor([*maps[0].flatten(), *maps[1].flatten()])
    finite = both[both.isfinite()].tolist() or [0.0]
    widest = float(pd.Series(abs(maps[2]).flatten()).max()) or 1.0
    titles = ["<br>".join(wrap(name, 14)) for name in (*names, f"{names[1]} − {names[0]}")]
    fig = make_subplots(rows=1, cols=3, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    for column, (name, values) in enumerate(zip((*names, "difference"), maps, strict=True), start=1):
        limits = (-widest, widest) if column == 3 else (min(finite), max(finite))
        fig.add_trace(
            go.Heatmap(
                z=values, x=_middles(acrosses, size), y=_middles(downs, size),
                colorscale=DIVERGING if column == 3 else [[0, "#f7f6f3"], [1, COLORS[1]]],
                zmin=limits[0], zmax=limits[1], xgap=gap, ygap=gap, showscale=column > 1,
                colorbar={
                    "orientation": "h", "thickness": 10, "y": 0, "yref": "container", "yanchor": "bottom",
                    "x": 0.32 if column == 2 else 0.84, "len": 0.6 if column == 2 else 0.32, "nticks": 5,
                },
                hovertemplate=f"{name}: {axes[0]} %{{y}}, {axes[1]} %{{x}}: %{{z:.3f}}<extra></extra>",
            ),
            row=1, col=column,
        )  # fmt: skip
    pooled = f"; blocks of {size}, each its mean" if size > 1 else ""
    lines = max(title.count("<br>") for title in titles)
    height = 230 + 14 * lines + min(max(30 * len(maps[0]), 90), 420)
    fig.update_layout(figure(title=f"{_words(number)}{title}{pooled}", height=height).layout)
    fig.update_layout(margin={"t": 80 + 14 * lines, "b": 110})
    fig.update_xaxes(title=axes[1], **_ticks(acrosses))
    fig.update_yaxes(**_ticks(downs), **({} if axes[0] == "entry" else {"autorange": "reversed"}))
    fig.update_yaxes(title=axes[0], row=1, col=1)
    return fig


def _chosen(result: Comparison, modality: str | None, example: int) -> tuple[pd.DataFrame, str]:
    """The rows of one map, and what tells it from the others in words."""
    table, told = result.table, ""
    if "modality" in result.labels:
        present = list(dict.fromkeys(table.modality))
        shown = modality or next((name for name in ("audio", "image") if name in present), present[0])
        if shown not in present:
            raise LensplugError(f"modality is {shown!r}, this comparison has {', '.join(present)}.")
        table, told = table[table.modality == shown], f" on {shown}"
    if "example" in result.labels:
        examples = table.example.nunique()
        if not 0 <= example < examples:
            raise LensplugError(f"example is {example}, the comparison has {examples}, counted from 0.")
        table, told = table[table.example == example], told + (f", example {example}" if examples > 1 else "")
    return table, told


def _middles(labels: list[int] | list[str], size: int) -> list[int | str]:
    return [labels[min(first + size // 2, len(labels) - 1)] for first in range(0, len(labels), size)]


def _ticks(labels: list[int] | list[str]) -> dict[str, object]:
    if any(isinstance(label, str) for label in labels):
        return {"type": "category"}
    return {"dtick": 1} if len(labels) <= 8 else {"nticks": 8, "tickformat": "d"}


def _words(number: str) -> str:
    return number.replace("_", " ")


def _bars(result: Comparison, number: str, names: tuple[str, str]) -> go.Figure:
    rows = result.table
    title = _words(number)
    if len(rows) > BARS:
        kept = rows[f"{number}_difference"].abs().nlargest(BARS).index.sort_values()
        title += f"<br><sub>the {BARS} of {len(rows)} rows that differ most</sub>"
        rows = rows.loc[kept]
    telling = [name for name in result.labels if rows[name].nunique() > 1]  # "example" often says nothing
    short = [name for name in telling if rows[name].astype(str).str.len().max() <= LENGTH][:3]
    labels, ticks = _labels(rows, telling), _labels(rows, short)
    at = list(range(len(rows)))
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.05)
    for name, end, color in ((names[0], "a", COLORS[0]), (names[1], "b", COLORS[1])):
        fig.add_trace(
            go.Bar(
                x=at, y=rows[f"{number}_{end}"].round(5), name=name, marker={"color": color, "line": {"width": 0}},
                customdata=labels, hovertemplate=f"{name}: %{{customdata}}: %{{y:.4f}}<extra></extra>",
            ),
            row=1, col=1,
        )  # fmt: skip
    change = rows[f"{number}_difference"]
    colors = [DIVERGING[2][1] if value > 0 else DIVERGING[0][1] for value in change]
    fig.add_trace(
        go.Bar(
            x=at, y=change.round(5), name=f"{names[1]} − {names[0]}", customdata=labels, showlegend=False,
            marker={"color": colors, "line": {"width": 0}}, hovertemplate="%{customdata}: %{y:+.4f}<extra></extra>",
        ),
        row=2, col=1,
    )  # fmt: skip
    legend = {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0}
    fig.update_layout(figure(title=title, height=460).layout, barmode="group", legend=legend, margin={"t": 100})
    fig.update_yaxes(gridcolor="#eceef0")
    fig.update_yaxes(title=f"{names[1]} − {names[0]}" if max(map(len, names)) <= 10 else "difference", row=2, col=1)
    every = block_size(len(rows), NAMED)
    fig.update_xaxes(
        title=", ".join(short), tickvals=at[::every], ticktext=ticks[::every], tickangle=-90, tickfont={"size": 9},
        row=2, col=1,
    )  # fmt: skip
    return fig


def _labels(rows: pd.DataFrame, columns: list[str]) -> list[str]:
    """What each row is of, safe to show."""
    if not columns:
        return [""] * len(rows)
    return [", ".join(visible(str(value)) for value in row) for row in rows[columns].itertuples(index=False)]
