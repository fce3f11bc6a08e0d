"""Numbers by layer with a band around them, and by layer and head as cells; layers as rows, the first at the top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import hex_to_rgb
from torch import Tensor

from lensplug.views.figures.heatmap import GAPS


def band(
    low: Float[Tensor, " layer"], high: Float[Tensor, " layer"], layers: Sequence[int], *, name: str, color: str
) -> go.Scatter:
    """The area between two lines, in a light shade of a color, "#rrggbb"."""
    red, green, blue = hex_to_rgb(color)
    down, up = list(layers), list(layers)[::-1]
    return go.Scatter(
        x=low.tolist() + high.flip(0).tolist(), y=down + up, mode="lines", fill="toself", name=name,
        fillcolor=f"rgba({red}, {green}, {blue}, 0.22)", line={"width": 0, "color": color}, hoverinfo="skip",
    )  # fmt: skip


def layer_rows(fig: go.Figure, layers: Sequence[int]) -> None:
    """Layers from the top to the bottom."""
    fig.update_layout(height=150 + 24 * max(len(layers), 6), showlegend=True, legend={"traceorder": "normal"})
    fig.update_xaxes(gridcolor="#eceef0", zeroline=False)
    fig.update_yaxes(
        title="layer", range=[max(layers) + 0.5, min(layers) - 0.5], dtick=1 if len(layers) <= 32 else 4,
        gridcolor="#f3f4f5", zeroline=False,
    )  # fmt: skip


def head_cells(values: Float[Tensor, "layer head"], layers: Sequence[int], **options: Any) -> go.Heatmap:
    """A cell for each layer and head."""
    gap = 1 if max(values.shape) <= GAPS else 0
    heads = [str(head) for head in range(values.shape[1])]
    return go.Heatmap(z=values.tolist(), x=heads, y=[str(layer) for layer in layers], xgap=gap, ygap=gap, **options)


def head_axes(fig: go.Figure) -> None:
    """Heads across, layers down."""
    fig.update_xaxes(type="category", tickfont={"size": 10}, title={"text": "head"})
    fig.update_yaxes(type="category", autorange="reversed", title={"text": "layer"})
