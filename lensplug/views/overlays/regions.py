"""Values of regions in their places: over the picture as cells, over the sound as columns of time."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from lensplug.analysis.regions.region_attribution_result import RegionAttribution
from lensplug.errors import LensplugError
from lensplug.geometry import AudioTimeline
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.media.images import both_ways
from lensplug.validation.arguments import check_example
from lensplug.views.figures.region_attribution import notes_of
from lensplug.views.overlays.overlay import SIDE, Cells, below, heat, lay_out, scale_of
from lensplug.views.style import figure, titled

MOST = 500
"""Rows and columns of cells; a mask with more edges is drawn coarser."""


def over_image(
    result: RegionAttribution, inputs: MultimodalInput, image: object, example: int, title: str
) -> go.Figure:
    """The values of regions over their picture, where several overlap their sum; each region has an outline.

    Raises:
        LensplugError: If the regions are not of a picture, or it is not the one.
    """
    check_example(example, len(result.names))
    if not result.masks:
        raise LensplugError(f"the regions are of {result.kind}: views.region_attribution draws them as bars.")
    masks, names = result.masks[example], result.names[example]
    height, width = masks.shape[1:]
    picture = _picture(inputs, image, result.media_index, example, (width, height))
    values = result.values[example, : len(names)]
    cells, members = _cells_of(masks, values)
    said = [["<br>".join(names[region] for region in row.nonzero()[:, 0].tolist()) for row in line] for line in members]
    trace = heat(cells, visible=True, shown=True, scale=scale_of(values))
    trace.update(
        text=said, hovertemplate=f"%{{text}}: %{{z:+.4g}} {result.unit}<extra></extra>", colorbar_title=result.unit
    )
    scale = SIDE / max(width, height)
    fig = figure(trace, title="", height=int(height * scale) + 60, width=max(int(width * scale) + 130, 540))
    lay_out(fig, width, height)
    fig.add_layout_image(below(picture, width, height))
    assert result.boxes is not None
    for x0, y0, x1, y1 in result.boxes[example, : len(names)].tolist():
        fig.add_shape(type="rect", x0=x0, y0=y0, x1=x1, y1=y1, line={"color": "rgba(255, 255, 255, 0.7)", "width": 1})
    titled(fig, title, notes_of(result, example))
    return fig


def _picture(inputs: MultimodalInput, image: object, index: int, example: int, size: tuple[int, int]) -> Image.Image:
    if image is None:
        check_example(example, len(inputs))
        pictures = inputs.pictures(example)
        if index >= len(pictures):
            raise LensplugError("the picture is not known: give the inputs that were analysed, or image=.")
        image = pictures[index]
    fitting = [picture for picture in both_ways(image) if picture.size == size]
    if not fitting:
        raise LensplugError(f"the picture is not the one of the regions, which has {size[0]} x {size[1]} pixels.")
    return fitting[0]


def _cells_of(
    masks: Bool[Tensor, "region height width"], values: Float[Tensor, " region"]
) -> tuple[Cells, Bool[Tensor, "row column region"]]:
    """The fewest cells that are each in the same regions throughout: their sums (NaN in none), and which they are."""
    y, x = (_starts(masks, dim) for dim in (1, 2))
    members = masks[:, y][:, :, x].permute(1, 2, 0)
    sums = (members.float() @ values.nan_to_num(0)).masked_fill(~members.any(dim=2), torch.nan)
    edges = [
        torch.cat([starts, torch.tensor([size])]).float() for starts, size in ((y, masks.shape[1]), (x, masks.shape[2]))
    ]
    return (sums, edges[0], edges[1]), members


def _starts(masks: Bool[Tensor, "region height width"], dim: int) -> Int[Tensor, " start"]:
    """Where a row (column) of pixels differs from the one before."""
    lines = masks.transpose(0, dim).flatten(1)
    differs = torch.cat([torch.tensor([True]), (lines[1:] != lines[:-1]).any(dim=1)])
    starts = differs.nonzero()[:, 0]
    return starts[:: -(-len(starts) // MOST)]


def timeline_of(result: RegionAttribution, duration_s: float, example: int) -> AudioTimeline:
    """The spans as if they were positions.

    Raises:
        LensplugError: If the regions are not of a sound, or it is shorter than they reach.
    """
    check_example(example, len(result.names))
    if result.spans_s is None:
        raise LensplugError(f"the regions are of {result.kind}: views.region_attribution draws them as bars.")
    start, end = result.spans_s[example, : len(result.names[example])].unbind(dim=1)
    if float(start.max()) >= duration_s:
        raise LensplugError(f"regions begin at {float(start.max()):.2f} s, and the sound lasts {duration_s:.2f} s.")
    return AudioTimeline(start, end.clamp(max=duration_s), duration_s)


def painted(values: Float[Tensor, " region"], timeline: Any, bins: int) -> Float[Tensor, " bin"]:
    """The sum of the spans that cover each moment; NaN where none does."""
    middles = (torch.arange(bins) + 0.5) * timeline.duration_s / bins
    covers = (middles >= timeline.start_s[:, None]) & (middles < timeline.end_s[:, None])
    sums: Tensor = (values.nan_to_num(0) @ covers.float()).masked_fill(~covers.any(dim=0), torch.nan)
    return sums
