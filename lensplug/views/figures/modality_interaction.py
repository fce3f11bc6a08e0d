"""What a medium alone, the text alone and both together add to each token of an answer, as bars."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.interventions.modality_interaction import ModalityInteraction
from lensplug.validation.arguments import check_example, checked
from lensplug.views.style import MODALITY_COLORS, figure, titled, visible

TOGETHER = "#59616b"
"""Of the interaction."""


@checked
def modality_interaction(result: ModalityInteraction, *, example: int = 0) -> go.Figure:
    """Three bars for each token: the medium alone, the text alone, and what both add beyond these.

    Args:
        result: From `analysis.modality_interaction`.
        example: Which answer.

    Raises:
        LensplugError: If there is no such example.
    """
    check_example(example, len(result.texts))
    tokens = result.texts[example]
    parts = (
        (f"the {result.medium} alone", result.by_medium, MODALITY_COLORS[result.medium]),
        ("the text alone", result.by_text, MODALITY_COLORS["text"]),
        ("both together, beyond that", result.interaction, TOGETHER),
    )
    fig = figure(
        *(
            go.Bar(
                x=list(range(len(tokens))), y=values[example, : len(tokens)].tolist(), name=name,
                marker={"color": color}, hovertemplate=f"{name}: %{{y:+.3f}} nats<extra></extra>",
            )
            for name, values, color in parts
        ),
        title="", height=380,
    )  # fmt: skip
    fig.update_xaxes(tickvals=list(range(len(tokens))), ticktext=[visible(token) for token in tokens])
    fig.update_xaxes(range=[-0.6, max(len(tokens), 4) - 0.4])  # one token is no wall
    fig.update_yaxes(title="log-probability (nats)", gridcolor="#eceef0", zerolinecolor="#9a9ea6")
    fig.update_layout(barmode="group", bargap=0.35, legend={"orientation": "h", "y": -0.14, "x": 0})
    whole = result.summary().iloc[example]
    notes = (
        f"Log-probability of the whole answer: {whole.both:.3g} with both, {whole.medium:.3g} with the {result.medium}"
        f" alone, {whole.text:.3g} with the text alone, {whole.neither:.3g} with neither; interaction"
        f" {whole.interaction:+.2f} nats"
    )
    titled(fig, f"What the {result.medium}, the text and both together add", notes)
    return fig
