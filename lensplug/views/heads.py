"""Layer x head: where each head looks, against chance."""

from __future__ import annotations

import plotly.graph_objects as go

from lensplug.analysis.head_specialization import HeadSpecialization
from lensplug.views.style import DIVERGING, figure

LIMIT = 3.0
"""Colours saturate at 2^3 = 8 times, and an eighth of, chance."""


def head_specialization(result: HeadSpecialization, *, modality: str | None = None) -> go.Figure:
    """A heat map of layer x head for one modality at a time, with a button for each.

    Colour is the logarithm to base 2 of mass over chance: 0 is chance, 1 twice chance. Hover tells the
    numbers.

    Args:
        result: From `analysis.head_specialization`.
        modality: Which to show first; "image" or "audio" if there is one, else the first.
    """
    medium = (name for name in ("image", "audio", "video") if name in result.modalities)
    shown = modality or next(medium, result.modalities[0])
    first = result._index(shown)
    frame = result.to_dataframe()
    layers, heads = result.mass.shape[1:3]
    traces, buttons = [], []
    for index, name in enumerate(result.modalities):
        rows = frame[frame.modality == name]
        ratio = rows.ratio.to_numpy().reshape(layers, heads)
        details = rows[["mass", "ratio", "standard_error", "entropy_nats", "largest_weight", "label"]]
        traces.append(
            go.Heatmap(
                z=result.mean[..., index].clamp(min=2**-LIMIT, max=2**LIMIT).log2().numpy(),
                text=[[f"{value:.2g}" for value in row] for row in ratio],
                texttemplate="%{text}" if heads <= 16 else None,
                customdata=details.to_numpy().reshape(layers, heads, -1),
                hovertemplate=(
                    "layer %{y}, head %{x}: <b>%{customdata[5]}</b><br>"
                    f"mass on {name} %{{customdata[0]:.3f}}, %{{customdata[1]:.2f}} x chance"
                    " (± %{customdata[2]:.2f})<br>entropy inside %{customdata[3]:.2f} nats,"
                    " largest weight %{customdata[4]:.3f}<extra></extra>"
                ),
                colorscale=DIVERGING,
                zmin=-LIMIT,
                zmax=LIMIT,
                xgap=1,
                ygap=1,
                visible=index == first,
                colorbar={
                    "title": "x chance",
                    "tickvals": [-3, -2, -1, 0, 1, 2, 3],
                    "ticktext": ["⅛", "¼", "½", "1", "2", "4", "8"],
                },
            )
        )
        visible = [i == index for i in range(len(result.modalities))]
        buttons.append({"label": name, "method": "restyle", "args": [{"visible": visible}]})
    count = int(result.count[first])
    title = f"Attention from the query position, against chance ({count} example{'s' if count > 1 else ''})"
    fig = figure(*traces, title=title, height=150 + 34 * layers)
    fig.update_xaxes(title="head", dtick=1 if heads <= 32 else 4, constrain="domain")
    fig.update_yaxes(title="layer", dtick=1 if layers <= 32 else 4, autorange="reversed")
    menu = {"type": "buttons", "direction": "right", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
    fig.update_layout(updatemenus=[{**menu, "buttons": buttons, "active": first, "showactive": True, "pad": {"b": 4}}])
    return fig
