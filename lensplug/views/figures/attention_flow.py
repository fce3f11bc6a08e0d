"""Attention flow by position or group: bars colored by modality."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.attention.attention_flow import Flow
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.groups import Groups
from lensplug.validation.arguments import check_example, checked
from lensplug.views.figures.attention_rollout import LIFT, LIFT_EXPLAINED, bars
from lensplug.views.style import visible


@checked
def attention_flow(
    result: Flow,
    *,
    inputs: MultimodalInput | None = None,
    example: int = 0,
    normalized: bool = False,
    raw: bool = False,
) -> go.Figure:
    """The maximum flow into each position, or each group of positions, as its lift over uniform attention.

    Args:
        result: From `analysis.attention_flow`.
        inputs: For the text and modality of positions whose group has no name of its own.
        example: Which example.
        normalized: Draw the flows divided by their sum instead of the lift.
        raw: Draw the flows themselves, as for a result without lift.
    """
    check_example(example, len(result.values))
    labels = list(result.labels[example])
    names, texts = [], []
    for label, modality, members in zip(
        labels, result.modalities[example], Groups(result.groups[example], labels).members, strict=True
    ):
        if inputs is not None and members:
            modality = inputs.modality.position_names[example][members[0]]
            if label == f"position {members[0]}":
                label = inputs.str_tokens[example][members[0]]
        names.append(modality.partition("+")[0] or "text")
        texts.append(visible(label) + (f", {len(members)} positions" if len(members) > 1 else ""))
    raw = raw or result.uniform is None
    drawn_values, unit = (result.values, "maximum flow") if raw else (result.lift, LIFT)
    drawn_values, unit = (result.normalized, "share of the flows") if normalized else (drawn_values, unit)
    notes = result.provenance.convention
    if result.uniform is not None:
        notes += f". Shown: {LIFT_EXPLAINED if unit == LIFT else unit}; {result.beyond_order(example)}"
    return bars(
        drawn_values[example], names, texts,
        title=f"Flow into position {int(result.row[example])}", notes=notes, unit=unit,
        axis="group" if result.upper_bound else "position",
    )  # fmt: skip
