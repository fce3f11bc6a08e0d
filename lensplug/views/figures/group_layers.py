"""A line for each group over the layers, with its interval as a band; layers as rows, the first at the top."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.colors import hex_to_rgb
from torch import Tensor

from lensplug.views.figures.by_layer import band, layer_rows
from lensplug.views.style import CATEGORIES, visible

EMBEDDING = "embed"
"""What the entry before the first layer is called."""


def layer_column(table: pd.DataFrame) -> str | None:
    """The column that says the layer, where heads are not told apart: "layer" or "entry"."""
    if "head" in table.columns:
        return None
    return next((name for name in ("entry", "layer") if name in table.columns), None)


def layers_of(table: pd.DataFrame, column: str) -> list[int]:
    """The layer of each row; -1 for the embedding."""
    return [-1 if entry == EMBEDDING else int(entry) for entry in table[column]]


def add_lines(
    fig: go.Figure,
    table: pd.DataFrame,
    groups: Sequence[str],
    column: str,
    *,
    form: str = ".3f",
    col: int | None = None,
) -> None:
    """A line and a band for each group, and for each further label of its rows.

    Args:
        fig: Where to.
        table: Of a `GroupMeans`.
        groups: In the order of their colors.
        column: The one that says the layer.
        form: How numbers are written.
        col: The column of subplots.
    """
    where = {} if col is None else {"row": 1, "col": col}
    apart = [name for name in ("position", "modality") if name in table.columns and table[name].nunique() > 1]
    several = len(table.groupby(["group", *apart], sort=False)) > 1
    lines, bands = [], []
    for index, (key, rows) in enumerate(table.groupby(["group", *apart], sort=False)):
        parts = [
            f"position {entry}" if label == "position" else str(entry)
            for label, entry in zip(apart, key[1:], strict=True)
        ]
        name = visible(", ".join([str(key[0]), *parts]))
        color = color_of(str(key[0]), groups) if not apart else CATEGORIES[index % len(CATEGORIES)]
        layers = layers_of(rows, column)
        low, high = _numbers(rows.low), _numbers(rows.high)
        if not low.isnan().any():
            limits = band(low, high, layers, name=name, color=color)
            bands.append(limits.update(showlegend=False, legendgroup=name))
        line = go.Scatter(
            x=rows["mean"].round(5).tolist(), y=layers, mode="lines+markers", name=name, legendgroup=name,
            showlegend=several, line={"color": color, "width": 2}, marker={"size": 5},
            customdata=list(zip(rows[column].tolist(), rows.low.tolist(), rows.high.tolist(), strict=True)),
            hovertemplate=(
                f"{name}, %{{customdata[0]}}: %{{x:{form}}} (%{{customdata[1]:{form}}} to %{{customdata[2]:{form}}})"
                "<extra></extra>"
            ),
        )  # fmt: skip
        lines.append(line)
    for trace in (*bands, *lines):  # no band over a line
        fig.add_trace(trace, **where)


def layers_down(fig: go.Figure, table: pd.DataFrame, column: str) -> None:
    """The vertical axis, with the embedding by its name."""
    layers = sorted(set(layers_of(table, column)))
    layer_rows(fig, layers)
    if column == "entry":
        step = 1 if len(layers) <= 32 else 4
        shown = [layer for layer in layers if layer < 0 or layer % step == 0]
        names = [EMBEDDING if layer < 0 else str(layer) for layer in shown]
        fig.update_yaxes(tickmode="array", tickvals=shown, ticktext=names, title="after layer")


def color_of(group: str, groups: Sequence[str]) -> str:
    """The color of a group: the same in every figure of its groups; dark grey where there is one."""
    return CATEGORIES[list(groups).index(group) % len(CATEGORIES)] if len(groups) > 1 else "#4c5a6b"


def lighter(color: str) -> str:
    """A color, "#rrggbb", on which dark whiskers show."""
    return "#" + "".join(f"{round(255 - 0.6 * (255 - part)):02x}" for part in hex_to_rgb(color))


def _numbers(column: pd.Series) -> Tensor:
    return torch.tensor(column.to_numpy(copy=True))
