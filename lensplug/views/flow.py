"""Attention flow by position or group: bars, coloured by modality."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.attention_flow import Flow
from lensplug.analysis.result import check_example
from lensplug.groups import Groups
from lensplug.inputs import MultimodalInput
from lensplug.views.rollout import bars
from lensplug.views.style import visible


def attention_flow(
    result: Flow, *, inputs: MultimodalInput | None = None, example: int = 0, normalized: bool = False
) -> go.Figure:
    """The maximum flow into each position, or into each group of positions.

    Args:
        result: From `analysis.attention_flow`.
        inputs: For the text and the modality of the positions, where a group is not named by its region.
        example: Which example.
        normalized: Divided by their sum.
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
    return bars(
        (result.normalized if normalized else result.values)[example], names, texts,
        title=f"Flow into position {int(result.row[example])}", notes=result.provenance.convention,
        unit="share of the flows" if normalized else "maximum flow", axis="group" if result.upper_bound else "position",
    )  # fmt: skip
