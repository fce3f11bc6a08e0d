"""Values on image tokens, painted over the picture that they came from."""

from __future__ import annotations

import math
from io import BytesIO

import plotly.graph_objects as go
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.geometry import ImageGrid
from lensplug.inputs import MultimodalInput
from lensplug.media import load_image
from lensplug.views.rows import Rows, rows_at
from lensplug.views.style import HEAT, figure

SIDE = 340
"""Pictures are drawn this many pixels long."""
CELLS = 70_000
"""All heat maps of a figure together have at most so many cells: a page stays small with any number of layers."""


def image_overlay(
    values: Rows,
    inputs: MultimodalInput,
    *,
    image: object = None,
    media_index: int = 0,
    example: int = 0,
    view: str = "all",
    title: str = "Over the image",
) -> go.Figure:
    """A heat map of any value on positions, over the image, with a slider where there are several.

    Args:
        values: One value for each position of the example (a row of a rollout, of attention, ...), or
            several under their names ("layer 0", ...).
        inputs: The inputs that were analysed.
        image: The picture; not needed where `prepare` was given it.
        media_index: Which image of the example.
        example: Which example.
        view: "all" (mean of base view and tiles), "base" or "tiles".
        title: Of the figure.

    Raises:
        LensplugError: If the family has no geometry, the picture is not known, or the values are not
            one for each position.
    """
    grid = inputs.modality.image_grid(media_index, example)
    if grid is None:
        raise LensplugError("this family has no geometry yet: its image tokens cannot be placed in the image.")
    picture = _picture(inputs, image, media_index, example, grid)
    rows = rows_at(values, inputs, inputs.modality.image_positions(media_index, example))
    maps = {name: _shrunk(grid.to_pixels(row, view=view), CELLS // len(rows)) for name, row in rows.items()}
    scale = SIDE / max(grid.width, grid.height)
    fig = figure(
        *(_heat(heat, grid, shown=i == 0) for i, heat in enumerate(maps.values())),
        title=title,
        height=int(grid.height * scale) + 120,
        width=int(grid.width * scale) + 130,
    )
    fig.add_layout_image(
        source=_jpeg(picture), xref="x", yref="y", x=0, y=0, sizex=grid.width, sizey=grid.height,
        sizing="stretch", layer="below",
    )  # fmt: skip
    fig.update_xaxes(range=[0, grid.width], visible=False, constrain="domain")
    fig.update_yaxes(range=[grid.height, 0], visible=False, scaleanchor="x", constrain="domain")
    fig.update_layout(margin={"l": 10, "r": 20, "t": 48, "b": 20})
    if len(maps) > 1:
        steps = [
            {"label": name, "method": "restyle", "args": [{"visible": [i == j for j in range(len(maps))]}]}
            for i, name in enumerate(maps)
        ]
        fig.update_layout(sliders=[{"steps": steps, "pad": {"t": 8}}], height=fig.layout.height + 60)
    return fig


def _heat(heat: Float[Tensor, "y x"], grid: ImageGrid, *, shown: bool) -> go.Heatmap:
    rows, columns = heat.shape
    dx, dy = grid.width / columns, grid.height / rows
    return go.Heatmap(
        z=heat.numpy().astype("float32"),
        x0=dx / 2, dx=dx, y0=dy / 2, dy=dy,
        zmin=0 if float(heat.min()) >= 0 else None,
        colorscale=HEAT,
        visible=shown,
        hovertemplate="x %{x:.0f}, y %{y:.0f}: %{z:.4f}<extra></extra>",
        colorbar={"thickness": 12},
    )  # fmt: skip


def _picture(inputs: MultimodalInput, image: object, media_index: int, example: int, grid: ImageGrid) -> Image.Image:
    if image is None:
        if not inputs.images:
            raise LensplugError("the picture is not known (encode keeps none): give image=.")
        image = inputs.images[example][media_index]
    picture = load_image(image)
    if picture.size != (grid.width, grid.height):
        raise LensplugError(f"the picture is {picture.size}, the grid is of one of {(grid.width, grid.height)} pixels.")
    return picture


def _shrunk(heat: Float[Tensor, "y x"], cells: int) -> Float[Tensor, "small_y small_x"]:
    """At most so many cells; a heat map has no finer detail than its tokens."""
    step = math.ceil(math.sqrt(heat.numel() / cells))
    return heat[step // 2 :: step, step // 2 :: step]


def _jpeg(picture: Image.Image) -> str:
    """The picture as a data URL, small enough to share."""
    from base64 import b64encode

    small = picture.copy()
    small.thumbnail((720, 720))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()
