"""Activation patching: the effect recovered at each layer and position, or layer and head."""

from __future__ import annotations

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.interventions.attribution_patching import AttributionPatching
from lensplug.analysis.interventions.recovered_effect import RecoveredEffect
from lensplug.errors import LensplugError
from lensplug.positions.groups import Groups
from lensplug.validation.arguments import check_example, checked
from lensplug.views.figures.heatmap import GAPS, numbered
from lensplug.views.style import DIVERGING, figure, titled, visible

BEYOND = 1.005
"""What is 100% as it is written is not beyond the scale."""


@checked
def activation_patching(result: RecoveredEffect, *, example: int = 0, head: int | None = None) -> go.Figure:
    """A heat map of layer x position (or group), or of layer x head.

    Color is the recovered fraction of the effect: off-white at 0, full orange at 1 (the clean run's answer), blue
    below 0; it is clipped to -1 and 1, and the title says how many cells are beyond. Of attribution patching with
    `verify` the title also says how well the estimates agree with exact patching.

    Args:
        result: From `analysis.activation_patching` or `analysis.attribution_patching`.
        example: Which example.
        head: For by="head_and_position", which head; by default the strongest at each position.

    Raises:
        LensplugError: If there is no such example or head.
    """
    check_example(example, len(result.clean))
    groups = result.groups_of(example)
    values, head_note = result.recovered[example, :, groups], ""
    is_grouped = int((result.groups[example] >= 0).sum()) > values.shape[1]
    if result.by == "head":
        values, names = values[:, 0], [str(index) for index in range(values.shape[2])]
    else:
        every = _names(result, example)
        names = [every[group] for group in groups]
        values, head_note = _of_heads(values, head)
    gap = 1 if max(values.shape) <= GAPS else 0
    axis = "head" if result.by == "head" else "group of positions" if is_grouped else "position"
    heat = go.Heatmap(
        z=values.numpy(), x=names, y=[str(layer) for layer in result.layers], zmin=-1, zmax=1, colorscale=DIVERGING,
        xgap=gap, ygap=gap, hovertemplate=f"layer %{{y}}, {axis} <b>%{{x}}</b>: %{{z:.3f}}<extra></extra>",
        colorbar={"title": "recovered", "thickness": 12, "tickformat": ".0%"},
    )  # fmt: skip
    fig = figure(heat, title="", height=110 + 22 * len(result.layers))
    endpoints = f"clean {float(result.clean[example]):.3g}, corrupt {float(result.corrupt[example]):.3g}"
    notes = "; ".join([result.provenance.convention, endpoints, *_cautions(result, example, values)])
    titled(fig, f"What patching {result.activation} recovers{head_note}", notes)
    angle = 0 if result.by == "head" else -90
    fig.update_xaxes(type="category", tickangle=angle, tickfont={"size": 10}, automargin=True, title={"text": axis})
    fig.update_yaxes(type="category", autorange="reversed", title={"text": "layer"})
    return fig


def _cautions(result: RecoveredEffect, example: int, values: Float[Tensor, "layer column"]) -> list[str]:
    """What the colors do not show: cells beyond the scale, and how far estimates can be trusted."""
    said = []
    beyond = int((values.abs() > BEYOND).sum())
    if beyond:
        said.append(f"{beyond} of {int(values.isfinite().sum())} cells are beyond ±100%")
    if isinstance(result, AttributionPatching) and (exact := int(result.verified[example].isfinite().sum())) > 1:
        agreement = float(result.rank_correlation[example])
        said.append(f"rank correlation with exact patching at the {exact} strongest places {agreement:.2f}")
    return said


def _names(result: RecoveredEffect, example: int) -> list[str]:
    """Unique names of the groups: a name that occurs twice is followed by its first position."""
    labels = list(result.labels[example])
    if len(set(labels)) == len(labels):
        return [visible(label) for label in labels]
    return numbered(labels, [min(members, default=-1) for members in Groups(result.groups[example], labels).members])


def _of_heads(values: Float[Tensor, "layer group head"], head: int | None) -> tuple[Float[Tensor, "layer group"], str]:
    """The values of one head, or of the strongest at each position, and a suffix for the title."""
    heads = values.shape[2]
    if head is not None:
        if not 0 <= head < heads:
            raise LensplugError(f"head is {head}, the result has {heads}, counted from 0.")
        return values[:, :, head], f", head {head}"
    strongest = values.abs().nan_to_num().argmax(dim=2, keepdim=True)
    return values.gather(2, strongest)[:, :, 0], ", strongest head" if heads > 1 else ""
