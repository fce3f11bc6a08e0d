"""One layer's attention matrix as a heat map."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.attention.attention_matrix import AttentionMatrix
from lensplug.validation.arguments import check_example, checked
from lensplug.views.figures.heatmap import ColorScale, heatmap, numbered

TALLEST = 660
"""Pixels, where there is room: a matrix is a square."""


@checked
def attention_matrix(result: AttentionMatrix, *, example: int = 0, scale: ColorScale = "linear") -> go.Figure:
    """Queries down, keys across, a square; hover tells both texts and the weight.

    Colour goes by the weight; a switch draws its square root, where a few columns have nearly all of it: there the
    scale ends below the largest, and the notes say where. Padding is left out.

    Args:
        result: From `analysis.attention_matrix`.
        example: Which example.
        scale: What is shown first, "linear" or "root".

    Raises:
        LensplugError: If there is no such example, or it has too many positions to draw.
    """
    check_example(example, len(result.values))
    values = result.values[example]
    at = (~values.diagonal().isnan()).nonzero()[:, 0]
    names = numbered([result.texts[example][i] for i in at.tolist()], at.tolist())
    heads = "mean of all heads" if result.head == "mean" else f"head {result.head}"
    pooled = "; grouped: sum over keys, mean over queries" if result.grouped else ""
    fig = heatmap(
        values[at][:, at], names, names, title=f"Attention in layer {result.layer}, {heads}",
        notes=f"rows (queries) look at columns (keys), each row sums to 1{pooled}",
        hover="<b>%{y}</b> looks at <b>%{x}</b>", height=min(TALLEST, 320 + 4 * len(at)), scale=scale,
    )  # fmt: skip
    fig.update_xaxes(constrain="domain", constraintoward="left")
    fig.update_yaxes(scaleanchor="x", constrain="domain", constraintoward="top")
    return fig
