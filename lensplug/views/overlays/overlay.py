"""Building blocks of the overlays: heat map cells, the image below them, sliders and buttons."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lensplug.views.style import HEAT, HEAT_SIGNED, title_text

SIDE = 340
"""Length of the longer side of an image, in pixels."""

NOTE = 18
"""Room for a line below a title, in pixels."""

Cells = tuple[Float[Tensor, "row column"], Float[Tensor, " row_edge"], Float[Tensor, " column_edge"]]


def heat(cells: Cells, *, visible: bool, shown: bool, scale: tuple[float, float]) -> go.Heatmap:
    """Cells with edges in image pixels; NaN and 0 are transparent.

    Args:
        cells: From `ImageGrid.to_cells`.
        visible: Set by the slider.
        shown: Set by the buttons: hidden traces are transparent.
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
    """From 0 to the largest finite value; symmetric around 0 if some are negative."""
    finite = values[values.isfinite()]
    largest = float(finite.abs().max()) if len(finite) else 0.0
    if largest == 0:
        return 0.0, 1.0
    return (-largest, largest) if float(finite.min()) < 0 else (0.0, largest)


def scales_of(rows: Sequence[Float[Tensor, ...]]) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """The color scale of each row, and the one shared by all; if one row has both signs, every scale is symmetric."""
    row_scales, shared = [scale_of(row) for row in rows], scale_of(torch.cat([row.flatten() for row in rows]))
    return [(-high, high) if shared[0] < 0 else (low, high) for low, high in row_scales], shared


def lay_out(fig: go.Figure, width: int, height: int) -> None:
    """Axes in image pixels, y downwards, with room for buttons."""
    fig.update_xaxes(range=[0, width], visible=False, constrain="domain")
    fig.update_yaxes(range=[height, 0], visible=False, scaleanchor="x", constrain="domain")
    fig.update_layout(margin={"l": 10, "r": 20, "t": 48, "b": 20})
    fig.update_layout(title={"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 14}})


def below(picture: Image.Image, width: int, height: int, *, visible: bool = True) -> dict[str, object]:
    """An image as a plotly layout image below all traces."""
    return {
        "source": data_url(picture), "xref": "x", "yref": "y", "x": 0, "y": 0, "sizex": width, "sizey": height,
        "sizing": "stretch", "layer": "below", "visible": visible,
    }  # fmt: skip


def say_measured(fig: go.Figure, measured: float | None, unit: str) -> None:
    """Under the title, that places were measured, and how exactly; nothing where they follow from the processor.

    Args:
        fig: The finished figure.
        measured: `measured` of a grid or timeline.
        unit: Of that number.
    """
    if measured is not None:
        say(fig, measured_note(measured, unit))


def say(fig: go.Figure, note: str) -> None:
    """A line more under the title of a finished figure."""
    text = title_text(fig.layout.title.text, note)
    fig.update_layout(title_text=text, height=fig.layout.height + NOTE, margin={"t": fig.layout.margin.t + NOTE})


def measured_note(measured: float, unit: str) -> str:
    """How places were found."""
    return f"places measured by lens.locate, edges to about {measured:.2g} {unit}"


def slider(
    names: Sequence[str],
    each: Sequence[int | None],
    layouts: Sequence[Mapping[str, object]] | None = None,
    *,
    room: int = 8,
) -> dict[str, object]:
    """One step per name: trace i belongs to step `each[i]` (None: to all); a step may also change the layout."""
    steps = [
        {
            "label": name,
            "method": "update",
            "args": [
                {"visible": [step_of_trace is None or step_of_trace == step for step_of_trace in each]},
                {} if layouts is None else layouts[step],
            ],
        }
        for step, name in enumerate(names)
    ]
    return {"steps": steps, "pad": {"t": room}}


def add_buttons(fig: go.Figure, names: Sequence[str], each: Sequence[int]) -> None:
    """One button per name, above the image: trace i belongs to button `each[i]`; the first is active.

    Buttons and slider act on different attributes, so they combine.
    """
    buttons = [
        {
            "label": name,
            "method": "restyle",
            "args": [
                {
                    "opacity": [float(button == chosen) for button in each],
                    "showscale": [button == chosen for button in each],
                    "hoverinfo": ["all" if button == chosen else "skip" for button in each],
                }
            ],
        }
        for chosen, name in enumerate(names)
    ]
    style = {"type": "buttons", "direction": "right"} if len(names) <= 3 else {"type": "dropdown", "direction": "down"}
    placement = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "pad": {"b": 2}, "font": {"size": 11}}
    menu = {"buttons": buttons, "active": 0, **style, **placement}
    fig.update_layout(updatemenus=[menu], height=fig.layout.height + 36, margin={"t": 84})


def add_scales(
    fig: go.Figure,
    shared: tuple[float, float],
    each: Sequence[tuple[float, float]],
    *,
    traces: Sequence[int] | None = None,
    layouts: tuple[Mapping[str, object], Mapping[str, object]] = ({}, {}),
) -> None:
    """A switch between one color scale for all rows, so that the slider compares them, and one scale per row.

    Args:
        fig: The figure, with its other buttons in place.
        shared: The ends of the shared scale.
        each: The ends of each trace's own scale.
        traces: Indices of these traces; all by default.
        layouts: Layout changes for the shared and for the separate scales.
    """
    buttons = [
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
            ("one scale for all", "each its own"), ([shared] * len(each), each), layouts, strict=True
        )
    ]
    menus = fig.layout.updatemenus
    placement = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "pad": {"b": 2 + 38 * len(menus)}}
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "active": 0, "font": {"size": 11}, **placement}
    room = 38 if menus else 36
    fig.update_layout(updatemenus=[*menus, menu], height=fig.layout.height + room)
    fig.update_layout(margin={"t": fig.layout.margin.t + room})


def data_url(picture: Image.Image, side: int = 720) -> str:
    """The image as a small JPEG in a data URL."""
    small = picture.copy()
    small.info.clear()  # drops comments and profiles, which JPEG would keep
    small.thumbnail((side, side))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()
