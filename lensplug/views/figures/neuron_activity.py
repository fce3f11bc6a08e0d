"""How often neurons fire, by layer: a line for each domain and modality; layers as rows."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.neurons.neuron_activity import NeuronActivity
from lensplug.views.style import CATEGORIES, figure, titled, visible

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def neuron_activity(result: NeuronActivity) -> go.Figure:
    """Mean firing probability of each layer's neurons; colors are domains, dashes modalities.

    Args:
        result: From `analysis.neuron_activity`.
    """
    mean = (result.fired.double() / result.positions.double()[..., None, None]).mean(dim=-1)
    layers = list(range(mean.shape[2]))
    fig = figure(title="", height=150 + 24 * max(len(layers), 6))
    for row, domain in enumerate(result.domains):
        for column, modality in enumerate(result.modalities):
            if not int(result.positions[row, column]):
                continue
            name = f"{visible(domain)}, {modality}"
            fig.add_scatter(
                x=mean[row, column].tolist(), y=layers, mode="lines+markers", name=name,
                line={"color": CATEGORIES[row % len(CATEGORIES)], "dash": DASHES[column % len(DASHES)], "width": 2},
                marker={"size": 5}, hovertemplate=f"layer %{{y}}, {name}: %{{x:.2%}}<extra></extra>",
            )  # fmt: skip
    fig.update_layout(showlegend=True)
    fig.update_xaxes(title="mean firing probability", rangemode="tozero", tickformat=".0%", gridcolor="#eceef0")
    fig.update_yaxes(title="layer", range=[len(layers) - 0.5, -0.5], dtick=1 if len(layers) <= 32 else 4)
    examples = f"{result.examples} example{'s' if result.examples > 1 else ''}"
    notes = (
        "Fraction of positions with a positive pre-activation (mlp.hook_pre > 0), mean over the layer's neurons;"
        " padding is left out"
    )
    titled(fig, f"How often neurons fire ({examples})", notes)
    return fig
