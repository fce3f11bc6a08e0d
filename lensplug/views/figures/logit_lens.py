"""Layer x position: the top token of the logit lens after each layer."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.logits.logit_lens import LogitLens
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.validation.arguments import check_example, checked
from lensplug.views.style import MONO, figure, visible


@checked
def logit_lens(result: LogitLens, *, inputs: MultimodalInput | None = None, example: int = 0) -> go.Figure:
    """The top token after each layer at each position; color is its probability, hover shows the other statistics.

    Args:
        result: From `analysis.logit_lens`.
        inputs: For the text of the positions.
        example: Which example of the batch.
    """
    entries = len(result.entries)
    check_example(example, len(result.positions))
    positions = result.positions[example].tolist()
    top = result.top_texts[example]
    hover = [[_hover(result, example, entry, pos) for pos in range(len(positions))] for entry in range(entries)]
    heat = go.Heatmap(
        z=result.top_probabilities[example, :, :, 0].numpy(),
        text=[[visible(top[entry][pos][0]) for pos in range(len(positions))] for entry in range(entries)],
        texttemplate="%{text}" if len(positions) <= 40 else None,
        textfont={"family": MONO, "size": 11},
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        colorscale=[[0, "#ffffff"], [1, "#f0a35e"]],
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        colorbar={"title": "probability"},
    )
    title = f"Logit lens: top token after each layer ({result.provenance.convention})"
    fig = figure(heat, title=title, height=140 + 28 * entries)
    texts = inputs.str_tokens[example] if inputs is not None else None
    labels = [f"{pos}" if texts is None else f"{visible(texts[pos])}<br>{pos}" for pos in positions]
    fig.update_xaxes(
        title="position (the model reads this token and predicts the next)",
        tickvals=list(range(len(positions))),
        ticktext=labels,
    )
    fig.update_yaxes(autorange="reversed", title="after layer", tickvals=list(range(entries)), ticktext=result.entries)
    return fig


def _hover(result: LogitLens, example: int, entry: int, pos: int) -> str:
    tokens = zip(
        result.top_texts[example][entry][pos], result.top_probabilities[example, entry, pos].tolist(), strict=True
    )
    top_lines = "<br>".join(f"{visible(text)}  {probability:.3f}" for text, probability in tokens)
    target = visible(result.target_texts[example][pos])
    return (
        f"<b>after {result.entries[entry]}, position {int(result.positions[example, pos])}</b><br>{top_lines}<br>"
        f"rank of {target}: {int(result.rank[example, entry, pos])},"
        f" log-probability {float(result.log_probability[example, entry, pos]):.2f}<br>"
        f"entropy {float(result.entropy[example, entry, pos]):.2f} nats,"
        f" KL to last {float(result.kl_to_last[example, entry, pos]):.2f} nats"
    )
