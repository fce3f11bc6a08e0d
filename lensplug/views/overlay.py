"""What overlays over pictures share: cells drawn as a heat map, the picture below them, a slider, buttons."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO

import plotly.graph_objects as go
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lensplug.views.style import HEAT

SIDE = 340
"""Pictures are drawn this many pixels long."""

Cells = tuple[Float[Tensor, "row column"], Float[Tensor, " row_edge"], Float[Tensor, " column_edge"]]


def heat(cells: Cells, *, visible: bool, shown: bool, scale: tuple[float, float] | None = None) -> go.Heatmap:
    """Cells between edges in pixels of the picture; NaN lets it through.

    Args:
        cells: From `ImageGrid.to_cells`.
        visible: The slider's part.
        shown: The buttons' part: what they hide is transparent.
        scale: The ends of the colour scale; `scale_of` the values if not given.
    """
    values, y, x = cells
    low, high = scale_of(values) if scale is None else scale
    return go.Heatmap(
        z=values.numpy(), x=x.numpy(), y=y.numpy(),
        zmin=low, zmax=high,
        colorscale=HEAT, visible=visible, opacity=1 if shown else 0, showscale=shown,
        hoverinfo=None if shown else "skip",
        hovertemplate="x %{x:.0f}, y %{y:.0f}: %{z:.4g}<extra></extra>",
        colorbar={"thickness": 12, "tickformat": ".3~g"},
    )  # fmt: skip


def scale_of(values: Float[Tensor, ...]) -> tuple[float, float]:
    """From 0 (or the smallest value, if that is below) to the largest; NaN and infinities left out."""
    known = values[values.isfinite()]
    return (min(float(known.min()), 0.0), float(known.max())) if len(known) else (0.0, 1.0)


def lay_out(fig: go.Figure, width: int, height: int) -> None:
    """Axes in pixels of the picture, y downwards, and room for the buttons where there are some."""
    fig.update_xaxes(range=[0, width], visible=False, constrain="domain")
    fig.update_yaxes(range=[height, 0], visible=False, scaleanchor="x", constrain="domain")
    fig.update_layout(margin={"l": 10, "r": 20, "t": 48, "b": 20})
    fig.update_layout(title={"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 14}})


def below(picture: Image.Image, width: int, height: int, *, visible: bool = True) -> dict[str, object]:
    """A picture as the image of a layout, under everything else."""
    return {
        "source": data_url(picture), "xref": "x", "yref": "y", "x": 0, "y": 0, "sizex": width, "sizey": height,
        "sizing": "stretch", "layer": "below", "visible": visible,
    }  # fmt: skip


def slider(
    names: Sequence[str],
    each: Sequence[int | None],
    layouts: Sequence[Mapping[str, object]] | None = None,
    *,
    room: int = 8,
) -> dict[str, object]:
    """One step for each name: trace i belongs to step `each[i]` (None: to all), and each step may change the layout."""
    steps = [
        {
            "label": name,
            "method": "update",
            "args": [
                {"visible": [own is None or own == step for own in each]},
                {} if layouts is None else layouts[step],
            ],
        }
        for step, name in enumerate(names)
    ]
    return {"steps": steps, "pad": {"t": room}}


def add_buttons(fig: go.Figure, names: Sequence[str], each: Sequence[int]) -> None:
    """One button for each name, over the picture: trace i belongs to button `each[i]`; the first is in force.

    They and a slider act on different attributes.
    """
    listed = [
        {
            "label": name,
            "method": "restyle",
            "args": [
                {
                    "opacity": [float(own == chosen) for own in each],
                    "showscale": [own == chosen for own in each],
                    "hoverinfo": ["all" if own == chosen else "skip" for own in each],
                }
            ],
        }
        for chosen, name in enumerate(names)
    ]
    kind = {"type": "buttons", "direction": "right"} if len(names) <= 3 else {"type": "dropdown", "direction": "down"}
    place = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "pad": {"b": 2}, "font": {"size": 11}}
    menu = {"buttons": listed, "active": 0, **kind, **place}
    fig.update_layout(updatemenus=[menu], height=fig.layout.height + 36, margin={"t": 84})


def data_url(picture: Image.Image, side: int = 720) -> str:
    """The picture as a JPEG in a data URL, small enough to share."""
    small = picture.copy()
    small.thumbnail((side, side))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()
