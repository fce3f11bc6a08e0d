"""Rollout by position: bars colored by modality."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.attention.attention_rollout import Rollout
from lensplug.analysis.attention.gradient_rollout import GradientRollout
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.validation.arguments import check_example, checked
from lensplug.views.figures.heatmap import texts_for
from lensplug.views.style import MODALITY_COLORS, figure, titled, visible

LIFT = "lift over uniform attention"
NAMED, LENGTH = 60, 16
"""Maximum number of bars with a name, and the length to which a name is cut."""
LIFT_EXPLAINED = f"{LIFT}, 1 = no more than position order alone gives, first position left out"


@checked
def attention_rollout(
    result: Rollout | GradientRollout,
    *,
    inputs: MultimodalInput | None = None,
    row: int = -1,
    example: int = 0,
    raw: bool = False,
    str_tokens: Sequence[Sequence[str]] | None = None,
) -> go.Figure:
    """One row of a rollout: the contribution of each input position to one output position.

    Drawn as lift: the ratio to what uniform attention would give; the notes state how much of the raw rollout is
    explained by position order alone. For a gradient rollout the bars are its relevance, R - I: next to the identity's
    1 nothing else would be visible.

    Args:
        result: From `analysis.attention_rollout` or `analysis.gradient_rollout`.
        inputs: For text and modality of the positions.
        row: Which of the result's rows.
        example: Which example.
        raw: Draw the share of each position instead of the lift; for an attention rollout.
        str_tokens: The text of the positions, without inputs: `cache.str_tokens` of a cache made with `tokens`.

    Raises:
        LensplugError: If there is not one text per position, or raw is set for a gradient rollout.
    """
    check_example(example, len(result.values))
    if not -(rows := result.values.shape[1]) <= row < rows:
        raise LensplugError(
            f"row is {row}, the result has {rows}, counted from 0 in the order in which they were requested."
        )
    notes = result.provenance.convention
    if isinstance(result, GradientRollout):
        if raw:
            raise LensplugError("raw=True is for attention_rollout: a gradient rollout has no lift. Leave raw out.")
        drawn_values, unit = result.relevance, "relevance"
    else:
        drawn_values, unit = (result.values, "share") if raw else (result.lift, LIFT)
        notes += f". Shown: {'the raw share' if raw else LIFT_EXPLAINED}; {result.beyond_order(example, row=row)}"
    names = ["text"] * drawn_values.shape[2] if inputs is None else inputs.modality.position_names[example]
    raw_texts = texts_for(drawn_values.shape[2], inputs=inputs, str_tokens=str_tokens, example=example)
    texts = [visible(text) if text else "" for text in raw_texts]
    position = int(result.rows[example, row])
    row_name = f"{texts[position]} (position {position})" if texts[position] else f"position {position}"
    title = f"{'Gradient rollout' if isinstance(result, GradientRollout) else 'Rollout'} into {row_name}"
    return bars(drawn_values[example, row], names, texts, title=title, notes=notes, unit=unit)


def bars(
    values: Float[Tensor, " bar"],
    modalities: Sequence[str],
    texts: Sequence[str],
    *,
    title: str,
    notes: str,
    unit: str,
    axis: str = "position",
) -> go.Figure:
    """One bar per position (or per item of `axis`), colored by modality; texts have gone through `visible`."""
    colors = [MODALITY_COLORS[name] for name in modalities]
    trace = go.Bar(
        x=list(range(len(values))), y=values.numpy(), marker={"color": colors, "line": {"width": 0}},
        customdata=list(texts),
        hovertemplate=f"%{{customdata}} ({axis} %{{x}}): %{{y:.4g}}<extra></extra>",
    )  # fmt: skip
    fig = figure(trace, title="", height=210)
    titled(fig, title, notes)
    fig.update_layout(bargap=0)
    fig.update_xaxes(title=axis)
    if len(values) <= NAMED and any(texts):
        names = [text if len(text) <= LENGTH else text[: LENGTH - 1] + "…" for text in texts]
        fig.update_xaxes(tickvals=list(range(len(values))), ticktext=names, tickangle=-90, title="")
    fig.update_yaxes(title=unit, rangemode="tozero", gridcolor="#eceef0")
    if unit == LIFT:
        fig.add_hline(y=1, line={"width": 1, "dash": "dot", "color": "#6b7280"})
    return fig
