"""Checkpoints side by side, and what is different between the first and each other."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from lensplug.analysis.compare import Comparison
from lensplug.errors import LensplugError
from lensplug.validation.arguments import checked
from lensplug.views.figures.block_means import block_means, block_size
from lensplug.views.style import DIVERGING, figure, visible

MAPS = (("layer", "head"), ("entry", "position"), ("row", "pos"), ("query", "key"))
"""Pairs of labels that are drawn as a map: what goes down, what goes across."""
CELLS = 120
"""A larger map is drawn in blocks, each its mean."""
BARS = 400
"""Maximum number of bars when the result is not a 2-D map: those with the largest differences."""
NAMED, LENGTH = 36, 24
"""Maximum number of named bars, and the length up to which a label is written; the rest is shown on hover."""
COLORS = ("#9aa5b1", "#12355b", "#2a9d8f", "#e9a23b", "#8a5a9e", "#c8553d")
"""Bar colors of the compared results; a seventh repeats the first."""
SIDE_BY_SIDE = 4
"""Maximum number of maps in one row; with more results the differences get a row of their own."""


@checked
def comparison(
    result: Comparison,
    *,
    number: str | None = None,
    names: Sequence[str] | None = None,
    modality: str | None = None,
    example: int = 0,
) -> go.Figure:
    """A map for each checkpoint and for each difference from the first (layer x head, layer x position); else bars.

    Args:
        result: From `analysis.compare`.
        number: What to draw, one of `result.numbers`; the first by default.
        names: What to call the checkpoints; as `analysis.compare` was told by default.
        modality: Of a result that has several, which map; "audio" or "image" where there is one.
        example: Of a result that has several, which map. Bars are of all examples.

    Raises:
        LensplugError: If the result has no such number, modality or example, or there is not one name for each.
    """
    number = result.number(number)
    shown = result.names if names is None else tuple(names)
    if len(shown) != len(result.names):
        raise LensplugError(f"names is {names!r}, expected {len(result.names)}, one for each result.")
    for down, across in MAPS:
        # One row of a rollout is one line of numbers: bars tell it better.
        if {down, across} <= set(result.labels) and (
            across == "head" or result.table[[down, across]].nunique().min() > 1
        ):
            return _maps(result, number, shown, (down, across), modality, example)
    return _bars(result, number, shown)


def _maps(
    result: Comparison,
    number: str,
    names: Sequence[str],
    axes: tuple[str, str],
    modality: str | None,
    example: int,
) -> go.Figure:
    table, title = _chosen(result, modality, example)
    downs, acrosses = (list(dict.fromkeys(table[axis])) for axis in axes)
    size = block_size(max(len(downs), len(acrosses)), CELLS)

    def blocks(column: str) -> NDArray[Any]:
        values = table.pivot(index=axes[0], columns=axes[1], values=column).loc[downs, acrosses]
        pooled: NDArray[Any] = block_means(torch.tensor(values.to_numpy(dtype=float)), size).numpy().round(4)
        return pooled

    maps = [blocks(f"{number}_{name}") for name in result.names]
    changes = [blocks(result.difference_column(number, name)) for name in result.names[1:]]
    limits, widest = _limits(maps), max(map(abs, _limits(changes))) or 1.0
    colors = [[0, "#f7f6f3"], [1, COLORS[1]]]
    if limits[0] < 0 < limits[1]:  # as far on both sides, 0 in the middle
        most = max(-limits[0], limits[1])
        limits, colors = (-most, most), DIVERGING
    told = [*names, *(f"{name} − {names[0]}" for name in names[1:])]
    rows = 1 if len(told) <= SIDE_BY_SIDE else 2
    columns = len(told) if rows == 1 else len(names)
    blank = [""] if rows == 2 else []  # nothing stands below the first, which the others are held against
    titles = ["<br>".join(wrap(name, 14)) for name in [*told[: len(names)], *blank, *told[len(names) :]]]
    fig = make_subplots(
        rows=rows, cols=columns, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04,
        vertical_spacing=0.2 if rows == 2 else None,
    )  # fmt: skip
    gap = 1 if max(maps[0].shape) <= 24 else 0  # between many cells, lines are all that is seen
    for at, (name, values) in enumerate(zip(told, [*maps, *changes], strict=True)):
        place, change = at + len(blank) * (at >= len(names)), at >= len(names)
        fig.add_trace(
            go.Heatmap(
                z=values, x=_middles(acrosses, size), y=_middles(downs, size), xgap=gap, ygap=gap,
                coloraxis="coloraxis2" if change else "coloraxis",
                hovertemplate=f"{name}: {axes[0]} %{{y}}, {axes[1]} %{{x}}: %{{z:.3f}}<extra></extra>",
            ),
            row=place // columns + 1, col=place % columns + 1,
        )  # fmt: skip
    pooled = f"; blocks of {size}, each its mean" if size > 1 else ""
    lines = max(title.count("<br>") for title in titles)
    height = 230 + rows * (14 * lines + min(max(30 * len(maps[0]), 90), 420)) + 60 * (rows - 1)
    fig.update_layout(figure(title=f"{_words(number)}{title}{pooled}", height=height).layout)
    fig.update_layout(
        margin={"t": 80 + 14 * lines, "b": 110},
        coloraxis={"colorscale": colors, "cmin": limits[0], "cmax": limits[1],
                   "colorbar": _colorbar(_words(number), 0.25)},
        coloraxis2={"colorscale": DIVERGING, "cmin": -widest, "cmax": widest,
                    "colorbar": _colorbar("difference", 0.78)},
    )  # fmt: skip
    fig.update_xaxes(title=axes[1], **_ticks(acrosses))
    fig.update_yaxes(**_ticks(downs), autorange="reversed")
    fig.update_yaxes(title=axes[0], col=1)
    if blank:
        fig.update_xaxes(visible=False, row=2, col=1)
        fig.update_yaxes(visible=False, row=2, col=1)
        fig.update_yaxes(showticklabels=True, title=axes[0], row=2, col=2)
    return fig


def _colorbar(title: str, x: float) -> dict[str, Any]:
    return {
        "orientation": "h", "thickness": 10, "y": 0, "yref": "container", "yanchor": "bottom", "x": x, "len": 0.36,
        "nticks": 5, "title": {"text": title, "side": "bottom", "font": {"size": 11}},
    }  # fmt: skip


def _limits(maps: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """The smallest and the largest number of several maps, whatever is not finite left out."""
    finite = np.concatenate([one.ravel() for one in maps])
    finite = finite[np.isfinite(finite)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


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


def _bars(result: Comparison, number: str, names: Sequence[str]) -> go.Figure:
    rows = result.table
    title = _words(number)
    columns = [result.difference_column(number, name) for name in result.names[1:]]
    if len(rows) > BARS:
        kept = rows[columns].abs().max(axis=1).nlargest(BARS).index.sort_values()
        title += f"<br><sub>the {BARS} of {len(rows)} rows that differ most</sub>"
        rows = rows.loc[kept]
    telling = [name for name in result.labels if rows[name].nunique() > 1]  # "example" often says nothing
    short = [name for name in telling if rows[name].astype(str).str.len().max() <= LENGTH][:3]
    labels, ticks = _labels(rows, telling), _labels(rows, short)
    at = list(range(len(rows)))
    colors = [COLORS[index % len(COLORS)] for index in range(len(names))]
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.05)
    for own, name, color in zip(result.names, names, colors, strict=True):
        fig.add_trace(
            go.Bar(
                x=at, y=rows[f"{number}_{own}"].round(5), name=name, marker={"color": color, "line": {"width": 0}},
                customdata=labels, hovertemplate=f"{name}: %{{customdata}}: %{{y:.4f}}<extra></extra>",
            ),
            row=1, col=1,
        )  # fmt: skip
    for column, name, color in zip(columns, names[1:], colors[1:], strict=True):
        change = rows[column]
        # Of two results the sign is told by colour; of more, colour tells which one.
        signs = [DIVERGING[2][1] if value > 0 else DIVERGING[0][1] for value in change]
        fig.add_trace(
            go.Bar(
                x=at, y=change.round(5), name=f"{name} − {names[0]}", customdata=labels, showlegend=False,
                marker={"color": signs if len(names) == 2 else color, "line": {"width": 0}},
                hovertemplate=f"{name} − {names[0]}: %{{customdata}}: %{{y:+.4f}}<extra></extra>",
            ),
            row=2, col=1,
        )  # fmt: skip
    legend = {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0}
    fig.update_layout(figure(title=title, height=460).layout, barmode="group", legend=legend, margin={"t": 100})
    fig.update_yaxes(gridcolor="#eceef0")
    held = f"− {names[0]}" if len(names) > 2 else f"{names[1]} − {names[0]}"
    fig.update_yaxes(title=held if max(map(len, names)) <= 10 else "difference", row=2, col=1)
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
