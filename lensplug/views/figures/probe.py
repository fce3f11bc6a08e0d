"""What probes read: accuracy by layer with its interval, chance and shuffled labels; of heads, layer x head."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.probes.probe_result import Probe
from lensplug.validation.arguments import checked
from lensplug.views.figures.by_layer import band, head_axes, head_cells, layer_rows
from lensplug.views.style import WHITE_TO_ORANGE, figure, titled, visible

BLUE, GREY = "#2b5c8a", "#9a9ea6"


@checked
def probe(result: Probe) -> go.Figure:
    """Held-out accuracy of each layer; of heads' outputs, of each layer and head, coloured from chance to 1.

    Args:
        result: From `analysis.probe`.
    """
    names = [visible(str(label)) for label in result.classes]
    called = ", ".join(names) if len(names) <= 4 else f"{len(names)} classes"
    count, groups = len(result.target), int(result.group.max()) + 1
    examples = f"{count} examples" + (f" in {groups} groups" if groups < count else "")
    fig = _heads(result) if result.accuracy.ndim == 2 else _layers(result)
    notes = (
        f"{examples}; {visible(result.provenance.convention)}. Held-out accuracy, interval at 95 %. That a property can"
        " be read does not say that the model uses it"
    )
    titled(fig, f"What probes of {result.hook} read: {called}", notes)
    return fig


def _layers(result: Probe) -> go.Figure:
    order = sorted(range(len(result.layers)), key=lambda index: result.layers[index])
    layers = [result.layers[index] for index in order]
    accuracy, (low, high) = result.accuracy[order], (limit[order] for limit in result.interval)
    fig = figure(title="", height=300)
    if result.shuffled.shape[-1]:
        shuffled = result.shuffled[order]
        least, most = shuffled.quantile(0.05, dim=-1), shuffled.quantile(0.95, dim=-1)
        fig.add_trace(band(least, most, layers, name="shuffled labels (90 %)", color=GREY))
        fig.add_scatter(
            x=shuffled.mean(dim=-1).tolist(), y=layers, mode="lines", name="shuffled labels, mean",
            line={"color": GREY, "width": 1}, hovertemplate="layer %{y}, shuffled labels: %{x:.1%}<extra></extra>",
        )  # fmt: skip
    fig.add_scatter(
        x=[result.chance] * 2, y=[min(layers) - 0.5, max(layers) + 0.5], mode="lines", name="chance",
        line={"color": "#22252a", "width": 1, "dash": "dash"}, hoverinfo="skip",
    )  # fmt: skip
    fig.add_trace(band(low, high, layers, name="interval (95 %)", color=BLUE))
    fig.add_scatter(
        x=accuracy.tolist(), y=layers, mode="lines+markers", name="accuracy", line={"color": BLUE, "width": 2},
        marker={"size": 5}, customdata=list(zip(low.tolist(), high.tolist(), strict=True)),
        hovertemplate="layer %{y}: %{x:.1%} (%{customdata[0]:.1%} to %{customdata[1]:.1%})<extra></extra>",
    )  # fmt: skip
    layer_rows(fig, layers)
    lowest = min(float(low.min()), result.chance, float(result.shuffled.min()) if result.shuffled.numel() else 1.0)
    fig.update_xaxes(title="held-out accuracy", tickformat=".0%", range=[max(0.0, lowest - 0.05), 1.02])
    return fig


def _heads(result: Probe) -> go.Figure:
    low, high = result.interval
    limits = [list(zip(*rows, strict=True)) for rows in zip(low.tolist(), high.tolist(), strict=True)]
    cells = head_cells(
        result.accuracy, result.layers, zmin=result.chance, zmax=1, colorscale=WHITE_TO_ORANGE, customdata=limits,
        hovertemplate=(
            "layer %{y}, head %{x}: %{z:.1%} (%{customdata[0]:.1%} to %{customdata[1]:.1%})<extra></extra>"
        ),
        colorbar={"title": "accuracy", "thickness": 12, "tickformat": ".0%"},
    )  # fmt: skip
    fig = figure(cells, title="", height=110 + 22 * len(result.layers))
    head_axes(fig)
    return fig
