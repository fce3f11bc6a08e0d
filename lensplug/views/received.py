"""The attention matrix of a layer with its modalities, and what each token receives."""

from __future__ import annotations

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from lensplug.analysis.received_attention import MEDIA, ReceivedAttention
from lensplug.views.style import MODALITY_COLORS, figure, visible

CELLS = 220
"""A matrix of more positions is drawn in blocks, each its mean, so that it has at most so many rows."""
LABELS = 40
"""At most so many tokens are named along an axis."""


def received_attention(result: ReceivedAttention, *, example: int = 0, top: int = 25) -> go.Figure:
    """The scaled matrix as a heat map with bands of modality, and below it the column means as bars.

    Named are the `top` tokens that receive most, and media, as far as there is room.

    Args:
        result: From `analysis.received_attention`.
        example: Which example.
        top: How many tokens to name.
    """
    values = result.values[example]
    at = (~values.isnan()).nonzero()[:, 0]
    matrix = result.matrix[example][at][:, at]
    size = -(-len(at) // CELLS)
    blocks = _pooled(matrix, size)
    fig = make_subplots(
        rows=2, cols=2, column_widths=[0.015, 0.985], row_heights=[0.72, 0.28], horizontal_spacing=0.006,
        vertical_spacing=0.03, shared_xaxes=True,
    )  # fmt: skip
    names = [result.modalities[example][i] or "text" for i in at.tolist()]
    texts = [visible(result.str_tokens[example][i]) for i in at.tolist()]
    hidden = blocks.masked_fill(blocks == 0, torch.nan)
    middles = [float(i * size + (size - 1) / 2) for i in range(len(blocks))]
    fig.add_trace(
        go.Heatmap(
            z=[[round(v, 3) if v == v else None for v in row] for row in hidden.tolist()], x=middles, y=middles,
            colorscale=[[0, "#f7f6f3"], [0.4, "#9ec3d8"], [1, "#12355b"]],
            colorbar={"thickness": 12, "y": 0.66, "len": 0.7},
            hovertemplate="from %{y} to %{x}: %{z:.3f}<extra></extra>",
        ),
        row=1, col=2,
    )  # fmt: skip
    fig.add_trace(_band(names), row=1, col=1)
    for name in dict.fromkeys(names):
        own = [i for i, other in enumerate(names) if other == name]
        fig.add_trace(
            go.Bar(
                x=own, y=[round(float(values[at[i]]), 4) for i in own], name=name, width=1,
                marker={"color": MODALITY_COLORS[name], "line": {"width": 0}},
                customdata=[[texts[i], int(at[i])] for i in own],
                hovertemplate="%{customdata[0]} (position %{customdata[1]}): %{y:.3f}<extra></extra>",
            ),
            row=2, col=2,
        )  # fmt: skip
    named = _named(result, example, at, names, top)
    pooled = f", blocks of {size}" if size > 1 else ""
    title = f"Layer {result.layer}: what each token receives ({result.provenance.convention}{pooled})"
    legend = {"orientation": "h", "y": 1.06, "x": 1, "xanchor": "right"}
    fig.update_layout(figure(title=title, height=640).layout, legend=legend)
    edge = {"range": [-0.5, len(at) - 0.5]}
    fig.update_xaxes(**edge, row=1, col=2, showticklabels=False)
    fig.update_xaxes(
        **edge, row=2, col=2, tickvals=named, ticktext=[texts[i] or str(int(at[i])) for i in named], tickangle=-60,
        tickfont={"size": 10},
    )  # fmt: skip
    fig.update_yaxes(range=[len(at) - 0.5, -0.5], showticklabels=False, row=1, col=2)
    fig.update_yaxes(range=[len(at) - 0.5, -0.5], title="looks (query)", tickvals=[], row=1, col=1)
    fig.update_xaxes(showticklabels=False, row=1, col=1)
    fig.update_xaxes(visible=False, row=2, col=1)
    fig.update_yaxes(visible=False, row=2, col=1)
    fig.update_yaxes(title="received", rangemode="tozero", gridcolor="#eceef0", row=2, col=2)
    return fig


def _band(names: list[str]) -> go.Heatmap:
    """One column: the modality of each row, in its colour."""
    order = list(MODALITY_COLORS)
    scale = [[(i + end) / len(order), MODALITY_COLORS[name]] for i, name in enumerate(order) for end in (0, 1)]
    return go.Heatmap(
        z=[[order.index(name)] for name in names], x=[0], colorscale=scale, zmin=-0.5, zmax=len(order) - 0.5,
        showscale=False, hoverinfo="skip",
    )  # fmt: skip


def _pooled(matrix: Tensor, size: int) -> Tensor:
    """Mean over blocks of `size` x `size` (the last ones smaller)."""
    if size == 1:
        return matrix
    rows = torch.stack([part.mean(dim=0) for part in torch.split(matrix, size, dim=0)])
    return torch.stack([part.mean(dim=1) for part in torch.split(rows, size, dim=1)], dim=1)


def _named(result: ReceivedAttention, example: int, at: Tensor, names: list[str], top: int) -> list[int]:
    """Which columns are named: the top ones, then media, none so near to another that names overlap."""
    place = {position: column for column, position in enumerate(at.tolist())}
    wanted = [place[position] for position, _, _ in result.top(top, example=example)]
    wanted += [column for column, name in enumerate(names) if name in MEDIA]
    apart = max(1.0, len(at) / LABELS)
    chosen: list[int] = []
    for column in wanted:
        if all(abs(column - other) >= apart for other in chosen):
            chosen.append(column)
    return sorted(chosen)
