"""One layer's attention matrix as a heat map."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.attention.attention_matrix import AttentionMatrix
from lensplug.validation.arguments import check_example, checked
from lensplug.views.figures.heatmap import ColorScale, heatmap, numbered

TALLEST = 660
"""Maximum height in pixels; the matrix is drawn as a square."""


@checked
def attention_matrix(result: AttentionMatrix, *, example: int = 0, scale: ColorScale = "linear") -> go.Figure:
    """Queries as rows, keys as columns; hover shows both tokens and the weight.

    Color is the weight; a button switches to its square root, for matrices in which a few columns take nearly all
    attention: the scale then ends below the largest weight, as the notes state. Padding is left out.

    Args:
        result: From `analysis.attention_matrix`.
        example: Which example.
        scale: The initial color scale, "linear" or "root" (square root).

    Raises:
        LensplugError: If there is no such example, or it has too many positions to draw.
    """
    check_example(example, len(result.values))
    values = result.values[example]
    positions = (~values.diagonal().isnan()).nonzero()[:, 0]
    names = numbered([result.texts[example][i] for i in positions.tolist()], positions.tolist())
    heads = "mean of all heads" if result.head == "mean" else f"head {result.head}"
    pooled = "; grouped: sum over keys, mean over queries" if result.grouped else ""
    fig = heatmap(
        values[positions][:, positions], names, names, title=f"Attention in layer {result.layer}, {heads}",
        notes=f"rows (queries) attend to columns (keys), each row sums to 1{pooled}",
        hover="<b>%{y}</b> attends to <b>%{x}</b>", height=min(TALLEST, 320 + 4 * len(positions)), scale=scale,
    )  # fmt: skip
    fig.update_xaxes(constrain="domain", constraintoward="left")
    fig.update_yaxes(scaleanchor="x", constrain="domain", constraintoward="top")
    return fig
