"""Rollout by position: bars, coloured by modality."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.attention_rollout import Rollout
from lensplug.inputs import MultimodalInput
from lensplug.views.style import MODALITY_COLORS, figure, visible


def attention_rollout(
    result: Rollout, *, inputs: MultimodalInput | None = None, row: int = -1, example: int = 0
) -> go.Figure:
    """One row of a rollout: how much of each input position is in the chosen output position.

    Of a gradient rollout the bars are its relevance, R - I: beside the identity's 1 nothing else would be seen.

    Args:
        result: From `analysis.attention_rollout` or `analysis.gradient_rollout`.
        inputs: For the text and the modality of the positions.
        row: Which of the result's rows.
        example: Which example.
    """
    shown, unit = (result.values, "share") if result.relevance is None else (result.relevance, "relevance")
    values = shown[example, row].numpy()
    if inputs is None:
        colors, texts = [MODALITY_COLORS["text"]] * len(values), [""] * len(values)
    else:
        colors = [MODALITY_COLORS[name] for name in inputs.modality.position_names[example]]
        texts = [visible(text) for text in inputs.str_tokens[example]]
    bars = go.Bar(
        x=list(range(len(values))), y=values, marker={"color": colors, "line": {"width": 0}}, customdata=texts,
        hovertemplate="%{customdata} (position %{x}): %{y:.4g}<extra></extra>",
    )  # fmt: skip
    title = f"Rollout into position {int(result.rows[example, row])} ({result.provenance.convention})"
    fig = figure(bars, title=title, height=260)
    fig.update_layout(bargap=0)
    fig.update_xaxes(title="position")
    fig.update_yaxes(title=unit, rangemode="tozero", gridcolor="#eceef0")
    return fig
