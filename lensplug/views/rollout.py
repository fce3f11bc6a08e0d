"""Rollout by position: bars, coloured by modality."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from lensplug.analysis.attention_rollout import Rollout
from lensplug.inputs import MultimodalInput
from lensplug.views.heatmap import texts_for
from lensplug.views.style import MODALITY_COLORS, figure, titled, visible


def attention_rollout(
    result: Rollout,
    *,
    inputs: MultimodalInput | None = None,
    row: int = -1,
    example: int = 0,
    str_tokens: Sequence[Sequence[str]] | None = None,
) -> go.Figure:
    """One row of a rollout: how much of each input position is in the chosen output position.

    Of a gradient rollout the bars are its relevance, R - I: beside the identity's 1 nothing else would be seen.

    Args:
        result: From `analysis.attention_rollout` or `analysis.gradient_rollout`.
        inputs: For the text and the modality of the positions.
        row: Which of the result's rows.
        example: Which example.
        str_tokens: The text of the positions, without inputs: `cache.str_tokens` of a cache made with `tokens`.

    Raises:
        LensplugError: If the texts are not one for each position.
    """
    shown, unit = (result.values, "share") if result.relevance is None else (result.relevance, "relevance")
    values = shown[example, row].numpy()
    names = ["text"] * len(values) if inputs is None else inputs.modality.position_names[example]
    colors = [MODALITY_COLORS[name] for name in names]
    known = texts_for(len(values), inputs=inputs, str_tokens=str_tokens, example=example)
    texts = [visible(text) if text else "" for text in known]
    bars = go.Bar(
        x=list(range(len(values))), y=values, marker={"color": colors, "line": {"width": 0}}, customdata=texts,
        hovertemplate="%{customdata} (position %{x}): %{y:.4g}<extra></extra>",
    )  # fmt: skip
    at = int(result.rows[example, row])
    whose = f"{texts[at]} (position {at})" if texts[at] else f"position {at}"
    fig = figure(bars, title="", height=210)
    titled(fig, f"Rollout into {whose}", result.provenance.convention)
    fig.update_layout(bargap=0)
    fig.update_xaxes(title="position")
    fig.update_yaxes(title=unit, rangemode="tozero", gridcolor="#eceef0")
    return fig
