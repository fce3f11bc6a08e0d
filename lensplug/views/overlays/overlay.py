"""What overlays over pictures share: cells drawn as a heat map, the picture below them, a slider, buttons."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lensplug.views.style import HEAT, HEAT_SIGNED

SIDE = 340
"""Pictures are drawn this many pixels long."""

Cells = tuple[Float[Tensor, "row column"], Float[Tensor, " row_edge"], Float[Tensor, " column_edge"]]


def heat(cells: Cells, *, visible: bool, shown: bool, scale: tuple[float, float]) -> go.Heatmap:
    """Cells between edges in pixels of the picture; NaN lets it through, and so does 0.

    Args:
        cells: From `ImageGrid.to_cells`.
        visible: The slider's part.
        shown: The buttons' part: what they hide is transparent.
        scale: The ends of the colour scale, from `scale_of`.
    """
    values, y, x = cells
    low, high = scale
    return go.Heatmap(
        z=values.numpy(), x=x.numpy(), y=y.numpy(),
        zmin=low, zmax=high,
        colorscale=HEAT_SIGNED if low < 0 else HEAT, visible=visible, opacity=1 if shown else 0, showscale=shown,
        hoverinfo=None if shown else "skip",
        hovertemplate="x %{x:.0f}, y %{y:.0f}: %{z:.4g}<extra></extra>",
        colorbar={"thickness": 12, "tickformat": ".3~g"},
    )  # fmt: skip


def scale_of(values: Float[Tensor, ...]) -> tuple[float, float]:
    """From 0 to the largest value; where some are negative, as far on both sides. NaN and infinities are left out."""
    known = values[values.isfinite()]
    largest = float(known.abs().max()) if len(known) else 0.0
    if largest == 0:
        return 0.0, 1.0
    return (-largest, largest) if float(known.min()) < 0 else (0.0, largest)


def scales_of(rows: Sequence[Float[Tensor, ...]]) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """The color scale of each row, and the one shared by all; if one row has both signs, every scale is symmetric."""
    each, whole = [scale_of(row) for row in rows], scale_of(torch.cat([row.flatten() for row in rows]))
    return [(-high, high) if whole[0] < 0 else (low, high) for low, high in each], whole


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


def add_scales(
    fig: go.Figure,
    whole: tuple[float, float],
    each: Sequence[tuple[float, float]],
    *,
    traces: Sequence[int] | None = None,
    layouts: tuple[Mapping[str, object], Mapping[str, object]] = ({}, {}),
) -> None:
    """A switch above a picture between one scale for all rows, so that a slider compares, and for each row its own.

    Args:
        fig: With its other buttons.
        whole: The ends of the one scale.
        each: Of each trace, the ends of its own.
        traces: Which traces these are; all if not given.
        layouts: What changes in the layout with the one and with the other.
    """
    listed = [
        {
            "label": name,
            "method": "update",
            "args": [
                {"zmin": [low for low, _ in ends], "zmax": [high for _, high in ends]},
                layout,
                list(traces if traces is not None else range(len(ends))),
            ],
        }
        for name, ends, layout in zip(
            ("one scale for all", "each its own"), ([whole] * len(each), each), layouts, strict=True
        )
    ]
    others = fig.layout.updatemenus
    place = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "pad": {"b": 2 + 38 * len(others)}}
    menu = {"type": "buttons", "direction": "right", "buttons": listed, "active": 0, "font": {"size": 11}, **place}
    room = 38 if others else 36
    fig.update_layout(updatemenus=[*others, menu], height=fig.layout.height + room)
    fig.update_layout(margin={"t": fig.layout.margin.t + room})


def data_url(picture: Image.Image, side: int = 720) -> str:
    """The picture as a JPEG in a data URL, small enough to share."""
    small = picture.copy()
    small.info.clear()  # comments and profiles, which JPEG would carry on
    small.thumbnail((side, side))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()
