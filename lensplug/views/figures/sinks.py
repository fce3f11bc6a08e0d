"""Sinks by layer and position, over a strip of modalities; and the share of each head's mass that lies on them."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from lensplug.analysis.attention.found_sinks import Sinks
from lensplug.analysis.attention.sink_share import SinkShare
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.validation.arguments import check_example, checked
from lensplug.views.figures.heads import axes_of_heads, cells, written
from lensplug.views.figures.heatmap import texts_for
from lensplug.views.style import CATEGORIES, MODALITY_COLORS, PAPER_TO_DARK, figure, titled, visible

MEDIA = ("image", "audio", "video")
"""Modalities that are preferred for the initial view."""
NAMED = 12
"""Maximum number of sinks whose token is written below its column."""


@checked
def sinks(result: Sinks, *, example: int = 0, inputs: MultimodalInput | None = None) -> go.Figure:
    """A mark for each sink, by layer and position, over a strip with the modality of each position.

    One color for each set of rules that found it; hover shows what was measured. The sinks of the run are named below.

    Args:
        result: From `analysis.sinks`.
        example: Which example.
        inputs: For the text of the positions, if the result was made without.

    Raises:
        LensplugError: If there is no such example, or the inputs are not those of the result.
    """
    check_example(example, len(result.found))
    length = result.found.shape[2]
    texts = result.str_tokens[example] if inputs is None else texts_for(
        length, inputs=inputs, str_tokens=None, example=example
    )  # fmt: skip
    names = result.modalities[example]
    shown = [position for position, name in enumerate(names) if name != "pad"]
    table = result.to_dataframe()
    table = table[table.example == example]
    layers, of_run = result.found.shape[1], result.positions[example]
    upper, strip_height = 16 * layers + 20, 14
    inner = upper + strip_height + 8
    fig = make_subplots(
        rows=2, cols=1, row_heights=[upper / inner, strip_height / inner], vertical_spacing=8 / inner, shared_xaxes=True
    )
    for color, (rules, rows) in zip(CATEGORIES, table.groupby("rules", sort=True), strict=False):
        fig.add_trace(
            go.Scatter(
                x=rows.position.tolist(), y=rows.layer.tolist(), mode="markers", name=str(rules).replace("+", " + "),
                cliponaxis=False, marker={"symbol": "square", "size": 8, "color": color},
                customdata=[_measured(row, texts[row.position]) for row in rows.itertuples(index=False)],
                hovertemplate="%{customdata}<extra></extra>",
            ),
            row=1, col=1,
        )  # fmt: skip
    order = list(MODALITY_COLORS)
    scale = [[(at + end) / len(order), MODALITY_COLORS[name]] for at, name in enumerate(order) for end in (0, 1)]
    strip = go.Heatmap(
        z=[[order.index(names[position]) for position in shown]], x=shown, y=[0], colorscale=scale, zmin=-0.5,
        zmax=len(order) - 0.5, showscale=False, hoverinfo="skip",
    )  # fmt: skip
    fig.add_trace(strip, row=2, col=1)
    media = [name for name in dict.fromkeys(names) if name != "pad"]
    for name in media:  # names of the colors of the strip; with no sinks, what the axes are drawn for
        legend = go.Scatter(
            x=[None], y=[None], mode="markers", name=f"{name} (strip)",
            marker={"symbol": "square", "size": 8, "color": MODALITY_COLORS[name]},
        )  # fmt: skip
        fig.add_trace(legend, row=1, col=1)
    fig.update_layout(figure(title="", height=inner + 110).layout)
    counts = ", ".join(f"{sum(names[at] == name for at in of_run)} of {names.count(name)} {name}" for name in media)
    notes = f"Sinks of the run: {counts} positions. Found by {result.in_words}. The strip: what each position is"
    titled(fig, f"Sinks by layer and position ({len(of_run)} in all)", notes)
    marks = _apart(of_run, len(shown) / 40)[:NAMED]
    room = max(0.5, 0.008 * len(shown))
    fig.update_xaxes(range=[shown[0] - room, shown[-1] + room], showgrid=False, zeroline=False)
    fig.update_xaxes(
        tickvals=marks, ticktext=[f"{visible(texts[at])} {at}" if texts[at] else str(at) for at in marks],
        tickangle=-90, tickfont={"size": 10}, title="position", row=2, col=1,
    )  # fmt: skip
    fig.update_yaxes(
        title="layer", range=[layers - 0.5, -0.5], dtick=1 if layers <= 32 else 4, gridcolor="#eceef0", zeroline=False,
        row=1, col=1,
    )  # fmt: skip
    fig.update_yaxes(visible=False, row=2, col=1)
    fig.update_layout(showlegend=True, legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0})
    fig.update_layout(margin={"t": fig.layout.margin.t + 50, "b": 100}, height=fig.layout.height + 100)
    return fig


@checked
def sink_share(result: SinkShare, *, modality: str | None = None) -> go.Figure:
    """A layer x head heat map of the share of a modality's mass on sinks; a button for each modality with sinks.

    Args:
        result: From `analysis.sink_share`.
        modality: Which to show first; by default "image", "audio" or "video" if it has sinks, else what has some.

    Raises:
        LensplugError: If it is not in sight.
    """
    names = result.modalities
    having = [name for name in names if bool((result.chance[:, result._index(name)] > 0).any())] or list(names)
    first = modality if modality is not None else next((name for name in MEDIA if name in having), having[0])
    if first not in names:
        raise LensplugError(f"modality is {first!r}, this result has {', '.join(names)}.")
    layers, heads = result.mass.shape[1:3]
    traces = []
    for name in names:
        index = result._index(name)
        share, mass = (values[..., index].nanmean(dim=0) for values in (result.share, result.mass))
        chance = float(result.chance[:, index].nanmean())
        hover = [
            [
                f"layer {layer}, head {head}: {float(share[layer, head]):.1%} of its mass on {name} is on sinks"
                f"<br>mass on {name} {float(mass[layer, head]):.4f}; {chance:.2%} of the {name} positions are sinks"
                for head in range(heads)
            ]
            for layer in range(layers)
        ]
        traces.append(
            go.Heatmap(
                x=list(range(heads)), y=list(range(layers)), z=cells(share), customdata=hover,
                text=written(share), texttemplate="%{text}", hovertemplate="%{customdata}<extra></extra>",
                colorscale=PAPER_TO_DARK, zmin=0, zmax=1, xgap=1, ygap=1, visible=name == first,
                colorbar={"thickness": 12, "title": {"text": f"of {name}"}},
            )
        )  # fmt: skip
    fig = figure(*traces, title="", height=100 + 24 * layers)
    examples = f"{len(result.mass)} example{'s' if len(result.mass) > 1 else ''}"
    sinks_in_sight = torch.nanmean(result.chance, dim=0)
    counts = ", ".join(f"{float(sinks_in_sight[result._index(name)]):.2%} of {name}" for name in names)
    notes = f"0: none of what the head gives to the modality, 1: all of it. Sinks are {counts} positions in sight"
    titled(fig, f"Share of the mass that lies on sinks ({examples})", notes)
    buttons = [
        {"label": chosen, "method": "restyle", "args": [{"visible": [name == chosen for name in names]}]}
        for chosen in names
    ]
    menu = {
        "type": "buttons", "direction": "right", "xanchor": "left", "x": 0, "yanchor": "bottom", "y": 1,
        "showactive": True, "font": {"size": 11}, "pad": {"b": 4}, "buttons": buttons, "active": names.index(first),
    }  # fmt: skip
    fig.update_layout(updatemenus=[menu], margin={"t": fig.layout.margin.t + 38}, height=fig.layout.height + 38)
    axes_of_heads(fig, layers, heads)
    return fig


def _measured(row: Any, text: str) -> str:
    """What was measured of one sink."""
    numbers = {
        "largest activation {:,.0f} medians": "activation_ratio",
        "norm {:.3g} medians": "norm_ratio",
        "sink dimensions {:.3g} rms": "dimension",
        "{:.1%} of the attention of later positions": "received",
        "looked at in {:.0%} of heads": "heads",
    }
    values = {form: float(getattr(row, name)) for form, name in numbers.items()}
    token = f" {visible(text)}" if text else ""
    head = f"<b>layer {row.layer}, position {row.position}{token}</b> ({row.modality})"
    return "<br>".join([head, *(form.format(value) for form, value in values.items() if value == value)])


def _apart(positions: list[int], distance: float) -> list[int]:
    """Those whose names do not overlap: the first, then each that is far enough from the last."""
    kept: list[int] = []
    for position in positions:
        if not kept or position - kept[-1] >= distance:
            kept.append(position)
    return kept
