"""Values on image tokens, drawn over the image."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lensplug.analysis.regions.region_attribution_result import RegionAttribution
from lensplug.errors import LensplugError
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_grid import ViewName
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.locating.resampler_attention import ResamplerAttention
from lensplug.media.images import both_ways
from lensplug.media.warn import warn_user
from lensplug.validation.arguments import checked
from lensplug.views.overlays.overlay import (
    SIDE,
    add_buttons,
    add_scales,
    below,
    heat,
    lay_out,
    say,
    say_measured,
    scales_of,
    slider,
)
from lensplug.views.overlays.regions import over_image
from lensplug.views.overlays.rows import Rows, are_shares, rows_at
from lensplug.views.overlays.unseen import hatched, say_hatched
from lensplug.views.style import figure

CELLS = 400_000
"""Maximum total number of heat map cells for which all views get a button: 2 MB on a page."""
NO_GRID = (
    "its family has no geometry yet (lens.locate(inputs).inputs has measured places), or its size or the settings of"
    " its processor are not known (use lens.prepare, or give lens.encode images= or videos=)"
)
"""Reasons for a missing grid."""


def why_no_grid(inputs: MultimodalInput, kind: str) -> str:
    """Why an image or a video has none, as far as it is known."""
    return inputs.modality.no_place.get(kind, NO_GRID)


THROUGH = "through the resampler's cross-attention, mean of layers and heads"
OR_THROUGH = " With through=lens.resampler_attention(inputs) values are drawn over what each position was made from."
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
    through: ResamplerAttention | None = None,
    title: str = "Over the image",
) -> go.Figure:
    """A heat map of any value per position over the image, with a slider if there are several rows.

    Each patch is drawn at its place in the image, at any image size. If the model sees the image twice (base view and
    tiles), buttons choose between them and their mean. All rows and views share one color scale; a button gives each
    row its own. Values of both signs have a scale symmetric around 0, which is transparent. What no position sees of
    the picture (cropped off, or at an edge that fills no patch) is hatched.

    A `region_attribution` is drawn region by region, of the picture that it is of.

    Args:
        values: A result that has a value for each position (`attention_from`, a rollout, `received_attention`,
            `logit_lens` at the image's positions; the `by_position` of each says what it gives, and has
            options); or one value for each position of the example; or several such rows under their names
            ("layer 0", ...). NaN is left out.
        inputs: The inputs that were analysed.
        image: The image; not needed if `prepare` received it.
        media_index: Which image of the example.
        example: Which example.
        view: The initial view: "all" (mean of base view and tiles), "base" or "tiles". By default "all" for shares of
            attention; for other values, which should not be averaged over views, the view with the largest
            absolute value.
        through: From `lens.resampler_attention`, where a resampler or a Q-Former makes the positions, which then have
            no place: their values are spread over the encoder's patches as it attends to them.
        title: Title of the figure.

    Raises:
        LensplugError: If the image has no grid or no such view, the image is not available, or there is not one
            value per position.
    """
    if isinstance(values, RegionAttribution):
        if view is not None:
            raise LensplugError("view= is for values of positions: regions are of the picture itself.")
        return over_image(values, inputs, image, example, title)
    grid = grid_of(inputs, media_index, example) if through is None else _patches(through, inputs, media_index, example)
    picture = picture_of(inputs, grid, image=image, media_index=media_index, example=example)
    rows = rows_at(values, inputs, inputs.modality.image_positions(media_index, example), example=example)
    if through is not None:
        rows = {name: through.over_states(row) for name, row in rows.items()}
    if view is None:
        view = "all" if are_shares(values, inputs, example) else _strongest(grid, list(rows.values()))
    if view not in (views := ("all", *grid.views)):
        raise LensplugError(f"view is {view!r}, this image has {', '.join(map(repr, views))}.")
    offered = [view, *(name for name in views if name != view)] if len(grid.views) > 1 else [view]
    cells = {name: [grid.to_cells(row, view=name) for row in rows.values()] for name in offered}
    if sum(cells_of_row[0].numel() for by_row in cells.values() for cells_of_row in by_row) > CELLS:
        offered = [view]
    row_scales, shared_scale = scales_of([row[grid.placed] for row in rows.values()])
    traces, of_row, of_view = [], [], []
    for view_index, name in enumerate(offered):
        for index, row_cells in enumerate(cells[name]):
            traces.append(heat(row_cells, visible=index == 0, shown=view_index == 0, scale=shared_scale))
            of_row.append(index)
            of_view.append(view_index)
    scale = SIDE / max(grid.width, grid.height)
    if len(grid.views) > len(offered):  # no buttons that would say it
        title = f"{title} ({VIEW_NAMES[view]})"
    fig = figure(*traces, title=title, height=int(grid.height * scale) + 120, width=int(grid.width * scale) + 130)
    lay_out(fig, grid.width, grid.height)
    shown = hatched(picture, grid)
    fig.add_layout_image(below(shown, grid.width, grid.height))
    if shown is not picture:
        say_hatched(fig)
    if len(offered) > 1:
        add_buttons(fig, [VIEW_NAMES[name] for name in offered], of_view)
    if len(rows) > 1:
        add_scales(fig, shared_scale, [row_scales[row] for row in of_row])
        fig.update_layout(sliders=[slider(list(rows), of_row)], height=fig.layout.height + 60)
    say_measured(fig, grid.measured, "px")
    if through is not None:
        say(fig, THROUGH)
    return fig


def _strongest(grid: ImageGrid, rows: Sequence[Float[Tensor, " token"]]) -> ViewName:
    """The view with the largest absolute value; the whole image if they are equal."""
    if len(grid.views) < 2:
        return "all"
    of_base = grid.placed & (grid.view == 0)
    largest_of_view = {}
    for name in grid.views:
        in_view = of_base if name == "base" else grid.placed & ~of_base
        values = torch.cat([row[in_view] for row in rows])
        magnitudes = values[values.isfinite()].abs()
        largest_of_view[name] = float(magnitudes.max()) if len(magnitudes) else 0.0
    return max(grid.views, key=largest_of_view.__getitem__)


def grid_of(inputs: MultimodalInput, media_index: int, example: int) -> ImageGrid:
    """The grid of an image.

    Raises:
        LensplugError: If it has none.
    """
    grid = inputs.modality.image_grid(media_index, example)
    if grid is None:
        raise LensplugError(
            f"this image has no grid, so its tokens cannot be placed in it: {why_no_grid(inputs, 'image')}."
            + (OR_THROUGH if "image" in inputs.modality.no_place else "")
        )
    return grid


def _patches(through: ResamplerAttention, inputs: MultimodalInput, media_index: int, example: int) -> ImageGrid:
    """Where the states lie that a resampler attends to."""
    if not isinstance(through.states, ImageGrid):
        raise LensplugError(
            f"through is of a {through.kind}, this overlay is of an image: give over_states(...) itself."
        )
    n_tokens = len(inputs.modality.image_positions(media_index, example))
    if (through.media_index, through.example) != (media_index, example) or len(through.view) != n_tokens:
        raise LensplugError(
            f"through is of image {through.media_index} of example {through.example} with {len(through.view)}"
            f" positions, the overlay of image {media_index} of example {example} with {n_tokens}:"
            " lens.resampler_attention takes media_index= and example= as well."
        )
    return through.states


def picture_of(
    inputs: MultimodalInput, grid: ImageGrid, *, image: object, media_index: int, example: int
) -> Image.Image:
    """The image of a grid: the argument, or the one that `prepare` kept.

    Raises:
        LensplugError: If it is not available, or its size is not that of the grid.
    """
    if image is None:
        pictures = inputs.pictures(example)
        if media_index >= len(pictures):
            raise LensplugError("the picture is not known (encode keeps none unless it is given): give image=.")
        image = pictures[media_index]
    upright, stored = both_ways(image)
    fitting = [picture for picture in (upright, stored) if picture.size == (grid.width, grid.height)]
    if not fitting:
        raise LensplugError(f"the picture is {upright.size}, the grid is of one of {(grid.width, grid.height)} pixels.")
    if len(fitting) == 2 and upright is not stored:
        warn_user(
            "the image is drawn rotated according to its EXIF orientation; whether the model saw it so is not known:"
            " pass images= to lens.encode, which finds out."
        )
    return fitting[0]
