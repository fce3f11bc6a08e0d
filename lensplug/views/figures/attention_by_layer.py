"""One row of attention or of a rollout in every layer: a layer x position heat map."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.attention.attention_from import AttentionFrom, HeadOrMean
from lensplug.analysis.attention.attention_rollout import Rollout
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.groups import Groups
from lensplug.validation.arguments import check_example, checked
from lensplug.views.figures.attention_rollout import LIFT_EXPLAINED
from lensplug.views.figures.heatmap import ColorScale, heatmap, numbered, texts_for
from lensplug.views.style import visible


@checked
def attention_by_layer(
    result: AttentionFrom | Rollout,
    *,
    row: int = -1,
    head: HeadOrMean = "mean",
    example: int = 0,
    inputs: MultimodalInput | None = None,
    str_tokens: Sequence[Sequence[str]] | None = None,
    groups: Groups | None = None,
    scale: ColorScale = "linear",
    raw: bool = False,
) -> go.Figure:
    """Where one query position attends in each layer, or its rollout up to each layer.

    A rollout is drawn as its lift over uniform attention, without the first position, or raw.

    Typical rows: that of [CLS] for a classifier, that of the answer for a decoder. Color as in `attention_matrix`.

    Args:
        result: From `analysis.attention_from`, or from `analysis.attention_rollout(..., per_layer=True)`.
        row: Which of the result's rows, in the order in which they were requested.
        head: For `attention_from`: "mean" over all heads, or one head.
        example: Which example.
        inputs: For the text of the positions.
        str_tokens: The same without inputs: `cache.str_tokens` of a cache made with `tokens`.
        groups: Sums the weights over each group's positions: words from `lensplug.join_pieces`, or
            `views.group_positions`. The lift of a group is the quotient of its sums.
        scale: The initial color scale, "linear" or "root" (square root).
        raw: For a rollout: draw the shares instead of the lift.

    Raises:
        LensplugError: If the result has no such row or no values per layer, or texts or groups do not fit.
    """
    values, uniform, position, layers = _rows(result, row, head, example, raw)
    texts = texts_for(values.shape[1], inputs=inputs, str_tokens=str_tokens, example=example)
    row_name = f"{visible(texts[position])} (position {position})" if texts[position] else f"position {position}"
    if groups is not None:
        values, texts = groups.sums(values), tuple(groups.names)
        uniform = None if uniform is None else groups.sums(uniform)
    if uniform is not None:
        values = torch.where(uniform > 0, values / uniform, torch.nan)
    if isinstance(result, AttentionFrom):
        heads = "mean of all heads" if head == "mean" else f"head {head}"
        title, notes = f"Where {row_name} attends in each layer", f"fraction of its attention, {heads}"
    else:
        quantity = "the raw share" if raw else LIFT_EXPLAINED
        title = f"Rollout into {row_name} up to each layer"
        notes = f"{result.provenance.convention}. Shown: {quantity}; {result.beyond_order(example, row=row)}"
    fig = heatmap(
        values, [str(layer) for layer in layers], numbered(texts, range(len(texts))), title=title, notes=notes,
        hover="layer %{y}, <b>%{x}</b>", height=100 + 22 * len(layers), scale=scale,
    )  # fmt: skip
    fig.update_yaxes(title={"text": "layer"})
    return fig


def _rows(
    result: AttentionFrom | Rollout, row: int, head: HeadOrMean, example: int, raw: bool
) -> tuple[Float[Tensor, "layer pos"], Float[Tensor, "layer pos"] | None, int, Sequence[int]]:
    """The row in each layer, its value under uniform attention if a lift is drawn, its position, and the layers."""
    check_example(example, len(result.values))
    if isinstance(result, AttentionFrom):
        values = torch.stack(list(result.by_position(example, query=row, head=head).values()))
        return values, None, int(result.queries[example, row]), range(len(values))
    if result.by_layer is None:
        raise LensplugError(
            "this rollout has no values per layer: use analysis.attention_rollout(..., per_layer=True)."
        )
    rows = result.by_layer.shape[2]
    if not -rows <= row < rows:
        raise LensplugError(
            f"row is {row}, the result has {rows}, counted from 0 in the order in which they were requested."
        )
    values, position = result.by_layer[example, :, row], int(result.rows[example, row])
    if raw:
        return values, None, position, result.layers
    is_defined = ~result.lift_by_layer[example, :, row].isnan()
    return values * is_defined, result.uniform_by_layer[example, :, row] * is_defined, position, result.layers
