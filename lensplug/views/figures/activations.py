"""How long collected activations are: by layer, with a band of most examples, or by layer and head."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.probes.activations import Activations
from lensplug.validation.arguments import checked
from lensplug.views.figures.by_layer import band, head_axes, head_cells, layer_rows
from lensplug.views.style import PAPER_TO_DARK, figure, titled


@checked
def activations(result: Activations) -> go.Figure:
    """The mean length (L2 norm) of the vectors in each layer; of `z`, of each head.

    Args:
        result: From `analysis.activations`.
    """
    count = len(result.vectors)
    order = sorted(range(len(result.layers)), key=lambda index: result.layers[index])
    layers = [result.layers[index] for index in order]
    norm = result.vectors.float().norm(dim=-1)[:, order]
    mean = norm.mean(dim=0)
    title = f"The length of {result.hook} ({count} example{'s' * (count > 1)})"
    notes = f"Mean L2 norm of a vector; {result.provenance.convention}"
    if norm.ndim == 3:
        cells = head_cells(
            mean, layers, zmin=0, colorscale=PAPER_TO_DARK, colorbar={"title": "norm", "thickness": 12},
            hovertemplate="layer %{y}, head %{x}: %{z:.4g}<extra></extra>",
        )  # fmt: skip
        fig = figure(cells, title="", height=110 + 22 * len(layers))
        titled(fig, title, notes)
        head_axes(fig)
        return fig
    low, high = norm.quantile(0.05, dim=0), norm.quantile(0.95, dim=0)
    fig = figure(band(low, high, layers, name="90 % of the examples", color="#4c78a8"), title="", height=300)
    fig.add_scatter(
        x=mean.tolist(), y=layers, mode="lines+markers", name="mean", line={"color": "#4c78a8", "width": 2},
        marker={"size": 5}, hovertemplate="layer %{y}: %{x:.4g}<extra></extra>",
    )  # fmt: skip
    layer_rows(fig, layers)
    fig.update_xaxes(title="norm", rangemode="tozero")
    titled(fig, title, notes)
    return fig
