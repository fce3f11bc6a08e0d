"""Checkpoints side by side, and the difference of each from the first."""

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
"""Pairs of label columns that are drawn as a heat map: (rows, columns)."""
CELLS = 120
"""Maximum number of cells along one axis; a larger map is drawn as block means."""
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
        names: Names of the checkpoints; by default those passed to `analysis.compare`.
        modality: Which map, for a result with several; by default "audio" or "image" if present.
        example: Which map, for a result with several examples. Bars show all examples.

    Raises:
        LensplugError: If the result has no such number, modality or example, or names are not one per result.
    """
    number = result.number(number)
    result_names = result.names if names is None else tuple(names)
    if len(result_names) != len(result.names):
        raise LensplugError(f"names is {names!r}, expected {len(result.names)}, one for each result.")
    for down, across in MAPS:
        # A rollout with a single row is one line of numbers: bars show it better than a map.
        if {down, across} <= set(result.labels) and (
            across == "head" or result.table[[down, across]].nunique().min() > 1
        ):
            return _maps(result, number, result_names, (down, across), modality, example)
    return _bars(result, number, result_names)


def _maps(
    result: Comparison,
    number: str,
    names: Sequence[str],
    axes: tuple[str, str],
    modality: str | None,
    example: int,
) -> go.Figure:
    table, title = _chosen(result, modality, example)
    row_labels, column_labels = (list(dict.fromkeys(table[axis])) for axis in axes)
    size = block_size(max(len(row_labels), len(column_labels)), CELLS)

    def blocks(column: str) -> NDArray[Any]:
        values = table.pivot(index=axes[0], columns=axes[1], values=column).loc[row_labels, column_labels]
        pooled: NDArray[Any] = block_means(torch.tensor(values.to_numpy(dtype=float)), size).numpy().round(4)
        return pooled

    maps = [blocks(f"{number}_{name}") for name in result.names]
    changes = [blocks(result.difference_column(number, name)) for name in result.names[1:]]
    limits, widest = _limits(maps), max(map(abs, _limits(changes))) or 1.0
    colors = [[0, "#f7f6f3"], [1, COLORS[1]]]
    if limits[0] < 0 < limits[1]:  # symmetric around 0
        largest = max(-limits[0], limits[1])
        limits, colors = (-largest, largest), DIVERGING
    panel_names = [*names, *(f"{name} − {names[0]}" for name in names[1:])]
    rows = 1 if len(panel_names) <= SIDE_BY_SIDE else 2
    columns = len(panel_names) if rows == 1 else len(names)
    blank = [""] if rows == 2 else []  # the first result is the reference: there is no difference below it
    titles = ["<br>".join(wrap(name, 14)) for name in [*panel_names[: len(names)], *blank, *panel_names[len(names) :]]]
    fig = make_subplots(
        rows=rows, cols=columns, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04,
        vertical_spacing=0.2 if rows == 2 else None,
    )  # fmt: skip
    gap = 1 if max(maps[0].shape) <= 24 else 0  # with many cells, gaps would dominate
    for panel, (name, values) in enumerate(zip(panel_names, [*maps, *changes], strict=True)):
        slot, is_difference = panel + len(blank) * (panel >= len(names)), panel >= len(names)
        fig.add_trace(
            go.Heatmap(
                z=values, x=_middles(column_labels, size), y=_middles(row_labels, size), xgap=gap, ygap=gap,
                coloraxis="coloraxis2" if is_difference else "coloraxis",
                hovertemplate=f"{name}: {axes[0]} %{{y}}, {axes[1]} %{{x}}: %{{z:.3f}}<extra></extra>",
            ),
            row=slot // columns + 1, col=slot % columns + 1,
        )  # fmt: skip
    pooled = f"; blocks of {size} averaged" if size > 1 else ""
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
    fig.update_xaxes(title=axes[1], **_ticks(column_labels))
    fig.update_yaxes(**_ticks(row_labels), autorange="reversed")
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
    """The smallest and largest finite value of several maps."""
    finite = np.concatenate([values.ravel() for values in maps])
    finite = finite[np.isfinite(finite)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def _chosen(result: Comparison, modality: str | None, example: int) -> tuple[pd.DataFrame, str]:
    """The rows of one map, and a title suffix that identifies it."""
    table, suffix = result.table, ""
    if "modality" in result.labels:
        present = list(dict.fromkeys(table.modality))
        chosen_modality = modality or next((name for name in ("audio", "image") if name in present), present[0])
        if chosen_modality not in present:
            raise LensplugError(f"modality is {chosen_modality!r}, this comparison has {', '.join(present)}.")
        table, suffix = table[table.modality == chosen_modality], f" on {chosen_modality}"
    if "example" in result.labels:
        examples = table.example.nunique()
        if not 0 <= example < examples:
            raise LensplugError(f"example is {example}, the comparison has {examples}, counted from 0.")
        table, suffix = table[table.example == example], suffix + (f", example {example}" if examples > 1 else "")
    return table, suffix


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
        most_different = rows[columns].abs().max(axis=1).nlargest(BARS).index.sort_values()
        title += f"<br><sub>the {BARS} of {len(rows)} rows that differ most</sub>"
        rows = rows.loc[most_different]
    varying = [name for name in result.labels if rows[name].nunique() > 1]  # "example" often says nothing
    short = [name for name in varying if rows[name].astype(str).str.len().max() <= LENGTH][:3]
    labels, ticks = _labels(rows, varying), _labels(rows, short)
    bar_positions = list(range(len(rows)))
    colors = [COLORS[index % len(COLORS)] for index in range(len(names))]
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.05)
    for result_name, name, color in zip(result.names, names, colors, strict=True):
        fig.add_trace(
            go.Bar(
                x=bar_positions, y=rows[f"{number}_{result_name}"].round(5), name=name,
                marker={"color": color, "line": {"width": 0}},
                customdata=labels, hovertemplate=f"{name}: %{{customdata}}: %{{y:.4f}}<extra></extra>",
            ),
            row=1, col=1,
        )  # fmt: skip
    for column, name, color in zip(columns, names[1:], colors[1:], strict=True):
        change = rows[column]
        # For two results color shows the sign; for more it shows which result.
        signs = [DIVERGING[2][1] if value > 0 else DIVERGING[0][1] for value in change]
        fig.add_trace(
            go.Bar(
                x=bar_positions, y=change.round(5), name=f"{name} − {names[0]}", customdata=labels, showlegend=False,
                marker={"color": signs if len(names) == 2 else color, "line": {"width": 0}},
                hovertemplate=f"{name} − {names[0]}: %{{customdata}}: %{{y:+.4f}}<extra></extra>",
            ),
            row=2, col=1,
        )  # fmt: skip
    legend = {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0}
    fig.update_layout(figure(title=title, height=460).layout, barmode="group", legend=legend, margin={"t": 100})
    fig.update_yaxes(gridcolor="#eceef0")
    difference_title = f"− {names[0]}" if len(names) > 2 else f"{names[1]} − {names[0]}"
    fig.update_yaxes(title=difference_title if max(map(len, names)) <= 10 else "difference", row=2, col=1)
    tick_step = block_size(len(rows), NAMED)
    fig.update_xaxes(
        title=", ".join(short), tickvals=bar_positions[::tick_step], ticktext=ticks[::tick_step], tickangle=-90,
        tickfont={"size": 9},
        row=2, col=1,
    )  # fmt: skip
    return fig


def _labels(rows: pd.DataFrame, columns: list[str]) -> list[str]:
    """The label of each row, safe to display."""
    if not columns:
        return [""] * len(rows)
    return [", ".join(visible(str(value)) for value in row) for row in rows[columns].itertuples(index=False)]
