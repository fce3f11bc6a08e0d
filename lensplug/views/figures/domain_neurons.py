"""Domain neurons by layer: how many of each layer's neurons belong to each domain; layers as rows."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.neurons.domain_neurons import DomainNeurons
from lensplug.views.style import CATEGORIES, figure, titled, visible


def domain_neurons(result: DomainNeurons) -> go.Figure:
    """Stacked bars of counts by layer; a neuron of two domains is counted in both.

    Args:
        result: From `analysis.domain_neurons`.
    """
    count, layers = result.count, list(range(result.selected.shape[1]))
    fig = figure(title="", height=150 + 24 * max(len(layers), 6))
    for index, name in enumerate(result.domains):
        fig.add_bar(
            x=count[index].tolist(), y=layers, orientation="h", name=visible(name),
            marker={"color": CATEGORIES[index % len(CATEGORIES)]},
            hovertemplate=f"layer %{{y}}: %{{x}} neurons of {visible(name)}<extra></extra>",
        )  # fmt: skip
    fig.update_layout(barmode="stack", bargap=0.15, showlegend=True, legend={"traceorder": "normal"})
    fig.update_xaxes(title="neurons", rangemode="tozero", gridcolor="#eceef0", zeroline=False)
    fig.update_yaxes(title="layer", range=[len(layers) - 0.5, -0.5], dtick=1 if len(layers) <= 32 else 4)
    total = int(result.selected.any(dim=0).sum())
    notes = (
        f"{total} of {result.entropy.numel()} neurons: lowest entropy over the domains, among those that fire at more"
        f" than {result.threshold:.1%} of a domain's positions. That a neuron fires does not say that it is used"
    )
    titled(fig, "Domain neurons by layer", notes)
    return fig
