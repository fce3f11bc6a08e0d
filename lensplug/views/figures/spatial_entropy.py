"""Layer x head: spatial entropy of each head's map of the picture; and each head by mass on the picture and entropy."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lensplug.analysis.attention.spatial_entropy import SpatialEntropy
from lensplug.validation.arguments import at_least, checked
from lensplug.views.figures.heads import axes_of_heads, cells, written
from lensplug.views.style import figure, titled

ENTROPY = [[0.0, "#571a03"], [0.33, "#db6a1f"], [0.66, "#f5c78e"], [1.0, "#fdfcf9"]]
"""Dark for one place, light for many: what localises stands out."""
OTHERS, CHOSEN = "#9aa5b1", "#cc3311"


@checked
def spatial_entropy(result: SpatialEntropy, *, k: int = 3) -> go.Figure:
    """Two panels: a layer x head heat map of the mean entropy, and the heads by their mean mass and entropy.

    The line in the lower panel is the elbow of the masses; the k heads that localise most often are named.

    Args:
        result: From `analysis.spatial_entropy`.
        k: How many heads to name.
    """
    at_least(1, k=k)
    entropy, mass = result.entropy.nanmean(dim=0), result.mass.mean(dim=0)
    layers, heads = entropy.shape
    largest = max(float(entropy.nan_to_num(0).max()), 0.1)
    often = result.selected()
    hover = [
        [
            f"layer {layer}, head {head}: entropy {float(entropy[layer, head]):.3f} nats<br>mass on the picture"
            f" {float(mass[layer, head]):.4f}<br>localises in {float(often[layer, head]):.0%} of the examples"
            for head in range(heads)
        ]
        for layer in range(layers)
    ]
    upper = 24 * layers + 20
    height = upper + 260
    fig = make_subplots(rows=2, cols=1, row_heights=[upper / height, 240 / height], vertical_spacing=60 / height)
    heat = go.Heatmap(
        x=list(range(heads)), y=list(range(layers)), z=cells(entropy), customdata=hover, text=written(entropy),
        texttemplate="%{text}", hovertemplate="%{customdata}<extra></extra>", colorscale=ENTROPY, zmin=0,
        zmax=largest, xgap=1, ygap=1,
        colorbar={"thickness": 12, "title": {"text": "nats"}, "y": 1, "yanchor": "top", "len": upper / height},
    )  # fmt: skip
    fig.add_trace(heat, row=1, col=1)
    named = {(layer, head) for layer, head, _ in result.localising(k)}
    places = [(layer, head) for layer in range(layers) for head in range(heads) if entropy[layer, head].isfinite()]
    for color, size, chosen in ((OTHERS, 6, [p for p in places if p not in named]), (CHOSEN, 9, sorted(named))):
        fig.add_trace(
            go.Scatter(
                x=[float(mass[place]) for place in chosen], y=[float(entropy[place]) for place in chosen],
                mode="markers", marker={"color": color, "size": size}, showlegend=False,
                customdata=[hover[layer][head] for layer, head in chosen],
                hovertemplate="%{customdata}<extra></extra>",
            ),
            row=2, col=1,
        )  # fmt: skip
    for layer, head in sorted(named):
        fig.add_annotation(
            x=float(mass[layer, head]), y=float(entropy[layer, head]) + 0.08 * largest, text=f"{layer}.{head}",
            showarrow=False, font={"size": 11, "color": CHOSEN}, row=2, col=1,
        )  # fmt: skip
    fig.add_vline(x=result.elbow, line={"dash": "dot", "width": 1, "color": "#59616b"}, row=2, col=1)
    fig.update_layout(figure(title="", height=height).layout)
    examples = f"{len(result.entropy)} example{'s' if len(result.entropy) > 1 else ''}"
    notes = (
        "Entropy of the mass over connected places above the map's mean: 0 is one place. Below: mass on the picture and"
        f" entropy of each head; dotted: the elbow of the masses ({result.elbow:.3f}); red (layer.head): what localises"
    )
    titled(fig, f"Spatial entropy of each head's map ({examples})", notes)
    axes_of_heads(fig, layers, heads, row=1, col=1)
    lines = {"gridcolor": "#eceef0", "zeroline": False}
    fig.update_xaxes(title="mass on the picture", range=[-0.02, 1.02], **lines, row=2, col=1)
    fig.update_yaxes(title="entropy, nats", range=[-0.06 * largest, 1.15 * largest], **lines, row=2, col=1)
    return fig
