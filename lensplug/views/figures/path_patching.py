"""Path patching: what each sender passes on to a receiver directly."""

from __future__ import annotations

import plotly.graph_objects as go
from torch import Tensor

from lensplug.analysis.interventions.path_result import PathPatching
from lensplug.errors import LensplugError
from lensplug.positions.groups import Groups
from lensplug.validation.arguments import check_example, checked
from lensplug.views.figures.heatmap import GAPS, numbered
from lensplug.views.style import DIVERGING, figure, titled, visible

PLURAL = {"q": "queries", "k": "keys", "v": "values"}


@checked
def path_patching(result: PathPatching, *, example: int = 0, receiver: int | None = None) -> go.Figure:
    """A heat map of senders, layer x head, for one receiver; or of receivers x senders.

    Color is the recovered fraction of the effect: off-white at 0, orange above, blue below. A path alone carries
    little: the scale ends at the largest, but never below 1 % or above 100 % (the clean run's answer). Cells without a
    path are empty. Where senders were patched at groups of positions: the map of one receiver is layer x group, of the
    strongest head; that of all is of the strongest group.

    Args:
        result: From `analysis.path_patching`.
        example: Which example.
        receiver: Which receiver, by its number; by default all, where there are several.

    Raises:
        LensplugError: If there is no such example or receiver.
    """
    check_example(example, len(result.clean))
    if receiver is not None and not 0 <= receiver < len(result.receivers):
        raise LensplugError(f"receiver is {receiver}, the result has {len(result.receivers)}, counted from 0.")
    of_example = result.recovered[example][:, :, result.groups_of(example)]  # [receiver layer group head]
    if receiver is None and len(result.receivers) > 1:
        values, note = _strongest(of_example, 2)
        rows, row_axis = [visible(name) for name in result.receivers], f"receiver ({result.receiver})"
        columns, column_axis = _senders(result), "sender"
        values = values.flatten(1)
    else:
        chosen = receiver or 0
        rows, row_axis = [str(layer) for layer in result.layers], "layer of the sender"
        if result.by == "sender" and result.senders == "mlps":
            values, note = of_example[chosen, :, 0].T, ""
            rows, row_axis, columns, column_axis = ["MLP"], "", rows, row_axis
        elif result.by == "sender":
            values, note = of_example[chosen, :, 0], ""
            columns, column_axis = [str(head) for head in range(values.shape[1])], "head of the sender"
        else:
            values, note = _strongest(of_example[chosen], 2)
            columns, column_axis = _names(result, example), "group of positions"
    gap = 1 if max(values.shape) <= GAPS else 0
    end = float(values.abs().nan_to_num().max().clamp(0.01, 1))
    heat = go.Heatmap(
        z=values.numpy(), x=columns, y=rows, zmin=-end, zmax=end, colorscale=DIVERGING, xgap=gap, ygap=gap,
        hovertemplate=f"{row_axis} %{{y}}, {column_axis} <b>%{{x}}</b>: %{{z:.4f}}<extra></extra>",
        colorbar={"title": "recovered", "thickness": 12, "tickformat": ".0%"}, hoverongaps=False,
    )  # fmt: skip
    fig = figure(heat, title="", height=180 + 22 * len(rows))
    endpoints = f"clean {float(result.clean[example]):.3g}, corrupt {float(result.corrupt[example]):.3g}"
    to = "several receivers" if receiver is None and len(result.receivers) > 1 else _receiver(result, receiver or 0)
    titled(fig, f"What paths to {to} recover{note}", f"{result.provenance.convention}; {endpoints}")
    angle = 0 if max(map(len, columns)) <= 2 else -90
    fig.update_xaxes(
        type="category", tickangle=angle, tickfont={"size": 10}, automargin=True, title={"text": column_axis}
    )
    fig.update_yaxes(type="category", autorange="reversed", automargin=True, title={"text": row_axis})
    return fig


def _strongest(values: Tensor, axis: int) -> tuple[Tensor, str]:
    """The entry of an axis with the largest effect, and a suffix for the title."""
    index = values.abs().nan_to_num().argmax(dim=axis, keepdim=True)
    name = "head" if values.ndim == 3 else "group"
    return values.gather(axis, index).squeeze(axis), f", strongest {name}" if values.shape[axis] > 1 else ""


def _senders(result: PathPatching) -> list[str]:
    """In the order of layers, "layer.head" or the layer's MLP."""
    if result.senders == "mlps":
        return [f"MLP {layer}" for layer in result.layers]
    return [f"{layer}.{head}" for layer in result.layers for head in range(result.values.shape[-1])]


def _receiver(result: PathPatching, receiver: int) -> str:
    if result.receiver == "logits":
        return "the logits"
    return f"the {PLURAL[result.receiver]} of {visible(result.receivers[receiver])}"


def _names(result: PathPatching, example: int) -> list[str]:
    """Unique names of the groups that an example has: one that occurs twice is followed by its first position."""
    labels = list(result.labels[example])
    if len(set(labels)) == len(labels):
        names = [visible(label) for label in labels]
    else:
        members = Groups(result.groups[example], labels).members
        names = numbered(labels, [min(of_group, default=-1) for of_group in members])
    return [names[group] for group in result.groups_of(example)]
