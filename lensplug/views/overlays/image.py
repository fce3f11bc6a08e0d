"""Values on image tokens, painted over the picture that they came from."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_grid import ViewName
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.media.images import both_ways
from lensplug.media.warn import warn_user
from lensplug.validation.arguments import checked
from lensplug.views.overlays.overlay import SIDE, add_buttons, add_scales, below, heat, lay_out, scales_of, slider
from lensplug.views.overlays.rows import Rows, are_shares, rows_at
from lensplug.views.style import figure

CELLS = 400_000
"""The most cells of all heat maps together for which every view gets its button: two megabytes on a page."""
NO_GRID = (
    "its family has no geometry yet, or its size or the settings of its processor are not known (use lens.prepare, or"
    " give lens.encode images= or videos=)"
)
"""Why there can be no grid."""
VIEW_NAMES = {"all": "mean of both", "base": "whole image", "tiles": "tiles"}


@checked
def image_overlay(
    values: Rows,
    inputs: MultimodalInput,
    *,
    image: object = None,
    media_index: int = 0,
    example: int = 0,
    view: ViewName | None = None,
    title: str = "Over the image",
) -> go.Figure:
    """A heat map of any value on positions, over the image, with a slider where there are several.

    Every box is drawn where it lies in the image, at any size of the image. Where the model sees the image
    twice, buttons choose between the whole image, the tiles, and their mean. All rows and views have one colour scale;
    a switch gives each its own. Values of both signs have a scale that is symmetric around 0, where the picture shows.

    Args:
        values: A result that has a value for each position (`attention_from`, a rollout, `received_attention`,
            `logit_lens` at the image's positions; the `by_position` of each says what it gives, and has
            options); or one value for each position of the example; or several such rows under their names
            ("layer 0", ...). NaN is left out.
        inputs: The inputs that were analysed.
        image: The picture; not needed where `prepare` was given it.
        media_index: Which image of the example.
        example: Which example.
        view: What is shown first: "all" (mean of base view and tiles), "base" or "tiles". If not given, "all" for
            shares of attention; for other values, whose mean over the two would be neither's, the view that has the
            value farthest from 0.
        title: Of the figure.

    Raises:
        LensplugError: If the image has no grid or no such view, the picture is not known, or the values are
            not one for each position.
    """
    grid = grid_of(inputs, media_index, example)
    picture = picture_of(inputs, grid, image=image, media_index=media_index, example=example)
    rows = rows_at(values, inputs, inputs.modality.image_positions(media_index, example), example=example)
    if view is None:
        view = "all" if are_shares(values, inputs, example) else _strongest(grid, list(rows.values()))
    if view not in (views := ("all", *grid.views)):
        raise LensplugError(f"view is {view!r}, this image has {', '.join(map(repr, views))}.")
    offered = [view, *(name for name in views if name != view)] if len(grid.views) > 1 else [view]
    cells = {name: [grid.to_cells(row, view=name) for row in rows.values()] for name in offered}
    if sum(one[0].numel() for own in cells.values() for one in own) > CELLS:
        offered = [view]
    each, whole = scales_of([row[grid.placed] for row in rows.values()])
    traces, of_row, of_view = [], [], []
    for at, name in enumerate(offered):
        for index, own in enumerate(cells[name]):
            traces.append(heat(own, visible=index == 0, shown=at == 0, scale=whole))
            of_row.append(index)
            of_view.append(at)
    scale = SIDE / max(grid.width, grid.height)
    fig = figure(*traces, title=title, height=int(grid.height * scale) + 120, width=int(grid.width * scale) + 130)
    lay_out(fig, grid.width, grid.height)
    fig.add_layout_image(below(picture, grid.width, grid.height))
    if len(offered) > 1:
        add_buttons(fig, [VIEW_NAMES[name] for name in offered], of_view)
    if len(rows) > 1:
        add_scales(fig, whole, [each[row] for row in of_row])
        fig.update_layout(sliders=[slider(list(rows), of_row)], height=fig.layout.height + 60)
    return fig


def _strongest(grid: ImageGrid, rows: Sequence[Float[Tensor, " token"]]) -> ViewName:
    """The view that has the value farthest from 0; of equal ones the whole image."""
    if len(grid.views) < 2:
        return "all"
    of_base = grid.placed & (grid.view == 0)
    most = {}
    for name in grid.views:
        own = of_base if name == "base" else grid.placed & ~of_base
        values = torch.cat([row[own] for row in rows])
        known = values[values.isfinite()].abs()
        most[name] = float(known.max()) if len(known) else 0.0
    return max(grid.views, key=most.__getitem__)


def grid_of(inputs: MultimodalInput, media_index: int, example: int) -> ImageGrid:
    """The grid of an image.

    Raises:
        LensplugError: If it has none.
    """
    grid = inputs.modality.image_grid(media_index, example)
    if grid is None:
        raise LensplugError(f"this image has no grid, so its tokens cannot be placed in it: {NO_GRID}.")
    return grid


def picture_of(
    inputs: MultimodalInput, grid: ImageGrid, *, image: object, media_index: int, example: int
) -> Image.Image:
    """The picture of a grid: as given, else as `prepare` kept it.

    Raises:
        LensplugError: If it is not known, or is not of the grid's size.
    """
    if image is None:
        known = inputs.pictures(example)
        if media_index >= len(known):
            raise LensplugError("the picture is not known (encode keeps none unless it is given): give image=.")
        image = known[media_index]
    upright, stored = both_ways(image)
    fitting = [picture for picture in (upright, stored) if picture.size == (grid.width, grid.height)]
    if not fitting:
        raise LensplugError(f"the picture is {upright.size}, the grid is of one of {(grid.width, grid.height)} pixels.")
    if len(fitting) == 2 and upright is not stored:
        warn_user(
            "the picture is drawn turned as its EXIF says; whether the model saw it so is not known here: give"
            " lens.encode images=, which finds it out."
        )
    return fitting[0]
