"""What each component writes into a logit: bars by layer, layer x head by source, the strongest neurons."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.logits.direct_attribution_result import SUBLAYERS, DirectAttribution
from lensplug.errors import LensplugError
from lensplug.validation.arguments import check_example, checked
from lensplug.views.style import CATEGORIES, DIVERGING, figure, titled, visible

ALL = "all sources"
"""The button that shows heads from everywhere."""
NUMBERED = 16
"""Maximum number of heads for which cells have their value written in."""
ADDED = {"_deepstack": "added image features", "_per_layer_out": "per-layer inputs"}
NEURONS = 25
"""How many neurons are drawn."""
SUBLAYER_COLORS = dict(zip(SUBLAYERS, (CATEGORIES[0], CATEGORIES[3]), strict=True))
SUBLAYER_NAMES = dict(zip(SUBLAYERS, ("attention", "MLP"), strict=True))
FOR, AGAINST = DIVERGING[2][1], DIVERGING[0][1]
"""Bars of neurons that write for the target, and against it."""


@checked
def direct_attribution(
    result: DirectAttribution, *, example: int | None = None, modality: str | None = None
) -> go.Figure:
    """Bars by layer; a layer x head heat map, with a button for each modality that heads bring from; neurons as bars.

    Colors are symmetric around 0, and one scale for all modalities. Notes give what is not drawn, and the sum.

    Args:
        result: From `analysis.direct_attribution`.
        example: Which example; the mean over all by default.
        modality: By source or modality: which to show first; all together by default.

    Raises:
        LensplugError: If there is no such example or modality.
    """
    if example is not None:
        check_example(example, len(result.values))
    if modality is not None and modality not in result.modalities:
        there = ", ".join(result.modalities) or "no modalities: by='source', with inputs.modality"
        raise LensplugError(f"modality is {modality!r}, this result has {there}.")
    if result.by == "layer":
        fig = _by_layer(result, example)
    elif result.by == "neuron":
        fig = _by_neuron(result, example)
    else:
        fig = _by_head(result, example, modality)
    if fig.layout.updatemenus:
        room = 38
        titled(fig, _title(result, example), _notes(result, example))
        fig.update_layout(margin={"t": fig.layout.margin.t + room}, height=fig.layout.height + room)
    else:
        titled(fig, _title(result, example), _notes(result, example))
    return fig


def _by_layer(result: DirectAttribution, example: int | None) -> go.Figure:
    """Attention and MLP side by side for each layer, between the embedding and the biases."""
    values, others = _chosen(result.values, example), _chosen(result.others, example)
    beside = dict(zip(result.other_names, others.tolist(), strict=True))
    layers = [str(layer) for layer in range(len(values))]
    traces = [
        go.Bar(
            x=layers, y=values[:, index].tolist(), name=SUBLAYER_NAMES[name],
            marker={"color": SUBLAYER_COLORS[name], "line": {"width": 0}},
            hovertemplate=f"{SUBLAYER_NAMES[name]} of layer %{{x}}: %{{y:+.3f}} logits<extra></extra>",
        )
        for index, name in enumerate(SUBLAYERS)
    ]  # fmt: skip
    ends = {"embedding": beside["embed"], **_added(beside), "biases": _biases(beside)}
    traces.append(
        go.Bar(
            x=list(ends), y=list(ends.values()), name=", ".join(ends), marker={"color": "#9a9ea6"},
            hovertemplate="%{x}: %{y:+.3f} logits<extra></extra>",
        )
    )  # fmt: skip
    fig = figure(*traces, title="", height=300)
    fig.update_layout(barmode="group", legend={"orientation": "h", "y": -0.22, "x": 0})
    order = ["embedding", *layers, *list(ends)[1:]]
    fig.update_xaxes(title="layer", type="category", categoryorder="array", categoryarray=order)
    fig.update_yaxes(title="logits", gridcolor="#eceef0", zerolinecolor="#9a9ea6")
    return fig


def _by_head(result: DirectAttribution, example: int | None, modality: str | None) -> go.Figure:
    """A heat map for all sources together, and for each class of them."""
    by_name = {ALL: _chosen(result.values, example)}
    if result.masses is not None:
        by_name |= {name: _chosen(values, example) for name, values in result.by_modality().items()}
    first = ALL if modality is None else modality
    limit = max(float(values.abs().nan_to_num(0).max()) for values in by_name.values()) or 1.0
    layers, heads = by_name[ALL].shape
    traces = [
        go.Heatmap(
            x=list(range(heads)), y=list(range(layers)), z=_plain(values), text=_written(values),
            texttemplate="%{text}", colorscale=DIVERGING, zmin=-limit, zmax=limit, xgap=1, ygap=1,
            colorbar={"thickness": 12, "title": {"text": "logits"}}, visible=name == first,
            hovertemplate=(
                "layer %{y}, head %{x}" + ("" if name == ALL else f", from {visible(name)}")
                + ": <b>%{z:+.4f}</b> logits<extra></extra>"
            ),
        )
        for name, values in by_name.items()
    ]  # fmt: skip
    fig = figure(*traces, title="", height=100 + 24 * layers)
    if len(by_name) > 1:
        fig.update_layout(updatemenus=[_buttons(list(by_name), first)])
    fig.update_xaxes(
        title="head", dtick=max(1, math.ceil(heads / 32)), constrain="domain", showgrid=False, zeroline=False
    )
    fig.update_yaxes(
        title="layer", dtick=1 if layers <= 32 else 4, autorange="reversed", showgrid=False, zeroline=False
    )
    return fig


def _buttons(names: list[str], first: str) -> dict[str, Any]:
    buttons = [
        {"label": visible(name), "method": "restyle", "args": [{"visible": [name == other for other in names]}]}
        for name in names
    ]
    return {
        "type": "buttons", "direction": "right", "xanchor": "left", "x": 0, "yanchor": "bottom", "y": 1,
        "showactive": True, "font": {"size": 11}, "pad": {"b": 4}, "buttons": buttons, "active": names.index(first),
    }  # fmt: skip


def _by_neuron(result: DirectAttribution, example: int | None) -> go.Figure:
    """The strongest neurons, the strongest at the top."""
    strongest = result.top(NEURONS, example=example)
    values = [value for _, _, value in strongest]
    bars = go.Bar(
        x=values, y=[f"L{layer}N{neuron}" for layer, neuron, _ in strongest], orientation="h",
        marker={"color": [FOR if value > 0 else AGAINST for value in values], "line": {"width": 0}},
        hovertemplate="%{y}: %{x:+.4f} logits<extra></extra>", showlegend=False,
    )  # fmt: skip
    fig = figure(bars, title="", height=90 + 18 * len(values))
    fig.update_layout(margin={"l": 84})
    fig.update_xaxes(title="logits", gridcolor="#eceef0", zerolinecolor="#9a9ea6")
    fig.update_yaxes(type="category", autorange="reversed", showgrid=False, tickfont={"size": 10})
    return fig


def _title(result: DirectAttribution, example: int | None) -> str:
    targets = set(result.target_texts) if example is None else {result.target_texts[example]}
    target = visible(targets.pop()) if len(targets) == 1 else "each example's target"
    count = len(result.values)
    of = f"example {example}" if example is not None else f"{count} example{'s' if count > 1 else ''}"
    return f"Direct logit attribution: {target} ({of})"


def _notes(result: DirectAttribution, example: int | None) -> str:
    """What the drawn components add up to, what else there is, and the logit."""
    values = _chosen(result.values, example)
    others = dict(zip(result.other_names, _chosen(result.others, example).tolist(), strict=True))
    logit = float(_chosen(result.logit, example))
    shares = {
        "layer": {"attention": float(values[:, 0].sum()), "MLPs": float(values[:, -1].sum())},
        "neuron": {"all neurons": float(values.sum()), "attention": _sum(others, "attn_out")},
    }.get(result.by, {"heads": float(values.sum()), "MLPs": _sum(others, "mlp_out")})
    shares["embedding"] = others["embed"]
    shares |= {**_added(others), "biases": _biases(others)}
    said = ", ".join(f"{name} {value:+.2f}" for name, value in shares.items())
    first = f"The {NEURONS} strongest neurons. " if result.by == "neuron" and values.numel() > NEURONS else ""
    cap = "; ".join(part for part in result.provenance.convention.split("; ")[1:] if "cap" in part)
    return f"{first}{said}: together {logit:+.2f}, the logit{f' ({cap})' if cap else ''}; the final norm is frozen"


def _added(others: dict[str, float]) -> dict[str, float]:
    """What blocks add to the stream besides attention and MLP, in models that do."""
    return {said: _sum(others, end) for end, said in ADDED.items() if any(name.endswith(end) for name in others)}


def _biases(others: dict[str, float]) -> float:
    """What is no component: biases of layers, of the final norm and of the unembedding."""
    return math.fsum(value for name, value in others.items() if not name.endswith(("embed", "_out", *ADDED)))


def _sum(others: dict[str, float], ending: str) -> float:
    return math.fsum(value for name, value in others.items() if name.endswith(ending))


def _chosen(values: Float[Tensor, "example ..."], example: int | None) -> Float[Tensor, ...]:
    return values.nanmean(dim=0) if example is None else values[example]


def _written(values: Float[Tensor, "layer head"]) -> list[list[str]]:
    if values.shape[1] > NUMBERED:
        return [[""] * values.shape[1] for _ in values]
    form = "+.1f" if float(values.abs().nan_to_num(0).max()) >= 10 else "+.2f"
    texts = [["" if value != value else format(value, form) for value in row] for row in values.tolist()]
    return [["0" if not text.strip("+-0.") and text else text for text in row] for row in texts]


def _plain(values: Float[Tensor, "layer head"]) -> list[list[float | None]]:
    return [[None if value != value else round(value, 5) for value in row] for row in values.tolist()]
