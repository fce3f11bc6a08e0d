"""The modality ribbon: the prompt as one band colored by modality."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.validation.arguments import check_example, checked
from lensplug.views.style import MODALITY_COLORS, figure, visible


@checked
def modality_ribbon(inputs: MultimodalInput, *, example: int = 0) -> go.Figure:
    """The modality of each position (text, image, generated, padding, ...); hover shows the text of a span.

    Args:
        inputs: From `prepare`, `encode` or an answer.
        example: Which example of the batch.
    """
    check_example(example, len(inputs))
    texts = inputs.str_tokens[example]
    in_legend: set[str] = set()
    bars = []
    for span in inputs.modality.spans:
        if span.example != example:
            continue
        words = "".join(texts[span.start : span.stop]) if span.modality in ("text", "generated") else ""
        medium = "" if span.media_index is None else f" {span.media_index}"
        bars.append(
            go.Bar(
                x=[span.stop - span.start],
                base=[span.start],
                y=[""],
                orientation="h",
                width=0.7,
                marker={"color": MODALITY_COLORS[span.modality], "line": {"color": "white", "width": 1}},
                name=span.modality,
                legendgroup=span.modality,
                showlegend=span.modality not in in_legend,
                hovertemplate=f"{span.modality}{medium}: positions {span.start} to {span.stop - 1}"
                f"<br>{visible(words[:200])}<extra></extra>",
            )
        )
        in_legend.add(span.modality)
    fig = figure(*bars, title=f"The prompt: {len(texts)} positions", height=150)
    fig.update_layout(barmode="overlay", legend={"orientation": "h", "y": 1.5, "x": 1, "xanchor": "right"})
    fig.update_xaxes(range=[0, len(texts)], title="position")
    fig.update_yaxes(visible=False)
    return fig
