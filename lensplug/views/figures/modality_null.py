"""Layer x head: how far each head's mass on a modality is from shuffled labels."""

from __future__ import annotations

import math

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.attention.modality_null import ModalityNull
from lensplug.errors import LensplugError
from lensplug.validation.arguments import checked
from lensplug.views.style import DIVERGING, figure, titled

MEDIA = ("image", "audio", "video")
"""Modalities that are preferred for the initial view."""
NUMBERED = 16
"""Maximum number of heads for which cells have their value written in."""


@checked
def modality_null(result: ModalityNull, *, modality: str | None = None) -> go.Figure:
    """A layer x head heat map of the mean z over examples, one modality at a time; hover shows masses and p.

    All modalities have one color scale, symmetric around 0, which ends at the largest z.

    Args:
        result: From `analysis.modality_null`.
        modality: Which to show first; "image", "audio" or "video" if there is one, else the first.

    Raises:
        LensplugError: If the result has no such modality.
    """
    names = result.modalities
    first = modality if modality is not None else next((name for name in MEDIA if name in names), names[0])
    if first not in names:
        raise LensplugError(f"modality is {first!r}, this result has {', '.join(names)}.")
    z = result.z.nanmean(dim=0)
    limit = float(z.abs().nan_to_num(0).max()) or 1.0
    layers, heads = z.shape[:2]
    hover = _hover(result)
    traces = [
        go.Heatmap(
            x=list(range(heads)), y=list(range(layers)), z=_plain(z[..., index]), customdata=hover[index],
            text=_written(z[..., index]), texttemplate="%{text}", hovertemplate="%{customdata}<extra></extra>",
            colorscale=DIVERGING, zmin=-limit, zmax=limit, colorbar={"thickness": 12, "title": {"text": f"z, {name}"}},
            xgap=1, ygap=1, visible=name == first,
        )
        for index, name in enumerate(names)
    ]  # fmt: skip
    fig = figure(*traces, title="", height=100 + 24 * layers)
    examples = f"{len(result.z)} example{'s' if len(result.z) > 1 else ''}"
    notes = (
        "z: standard deviations of the mass above its mean over all shuffles of the labels; sinks keep theirs."
        " Modalities are blocks of positions: heads that follow blocks are far from 0"
    )
    titled(fig, f"Attention by modality against shuffled labels ({examples})", notes)
    buttons = [
        {"label": chosen, "method": "restyle", "args": [{"visible": [name == chosen for name in names]}]}
        for chosen in names
    ]
    menu = {
        "type": "buttons", "direction": "right", "xanchor": "left", "x": 0, "yanchor": "bottom", "y": 1,
        "showactive": True, "font": {"size": 11}, "pad": {"b": 4}, "buttons": buttons, "active": names.index(first),
    }  # fmt: skip
    fig.update_layout(updatemenus=[menu], margin={"t": fig.layout.margin.t + 38}, height=fig.layout.height + 38)
    fig.update_xaxes(
        title="head", dtick=max(1, math.ceil(heads / 32)), constrain="domain", showgrid=False, zeroline=False
    )
    fig.update_yaxes(
        title="layer", dtick=1 if layers <= 32 else 4, autorange="reversed", showgrid=False, zeroline=False
    )
    return fig


def _hover(result: ModalityNull) -> list[list[list[str]]]:
    """Hover texts, by modality, layer and head."""
    frame, single = result.to_dataframe(), len(result.z) == 1
    p_values = result.p_value[0].flatten().tolist()
    texts = [
        f"layer {row.layer}, head {row.head}: z = {row.z:+.2f}{'' if single else f' ± {row.z_standard_error:.2f}'}"
        f"<br>mass on {row.modality} {row.mass:.4f}, of shuffled labels {row.null_mean:.4f} ± {row.null_sd:.4f}"
        + (f"<br>p = {p:.3g}" if single else f"<br>p ≤ 0.05 in {share:.0%} of {row.count} examples")
        for row, p, share in zip(frame.itertuples(index=False), p_values, frame["share_p_below_0.05"], strict=True)
    ]
    _, layers, heads, names = result.z.shape
    return [
        [[texts[(layer * heads + head) * names + index] for head in range(heads)] for layer in range(layers)]
        for index in range(names)
    ]


def _written(z: Float[Tensor, "layer head"]) -> list[list[str]]:
    if z.shape[1] > NUMBERED:
        return [[""] * z.shape[1] for _ in z]
    return [["" if value != value else f"{value:+.1f}" for value in row] for row in z.tolist()]


def _plain(z: Float[Tensor, "layer head"]) -> list[list[float | None]]:
    return [[None if value != value else round(value, 5) for value in row] for row in z.tolist()]
