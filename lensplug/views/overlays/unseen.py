"""What the model never saw of a picture, hatched: cropped off, or between cells that are not in the prompt."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from lensplug.geometry import ImageGrid

SIDE = 720
"""Longest side of a hatched picture, in pixels: the one at which pictures are drawn."""
STRIPE, EVERY = 2, 8
NOTE = "hatched: not seen"


def hatched(picture: Image.Image, grid: ImageGrid) -> Image.Image:
    """The picture, what no token sees of it hatched; as it is, where all of it is seen."""
    seen, y, x = grid.to_cells(torch.ones(len(grid)))
    unseen = seen.isnan()
    if not bool(unseen.any()):
        return picture
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    rows, columns = _cells(y, small.height, grid.height), _cells(x, small.width, grid.width)
    mask = unseen[rows][:, columns].numpy()
    stripe = (np.arange(small.height)[:, None] + np.arange(small.width)[None]) % EVERY < STRIPE
    pixels = np.array(small)
    pixels[mask] = pixels[mask] // 2
    pixels[mask & stripe] = 220
    return Image.fromarray(pixels)


def say_hatched(fig: go.Figure) -> None:
    """Say below a picture what its hatching means."""
    fig.add_annotation(
        text=NOTE, x=0, y=0, xref="paper", yref="paper", xanchor="left", yanchor="bottom", showarrow=False,
        font={"size": 10}, bgcolor="rgba(255, 255, 255, 0.7)",
    )  # fmt: skip


def _cells(edges: Tensor, pixels: int, length: int) -> Int[Tensor, " pixel"]:
    """The cell of each pixel's middle, of so many pixels along a side of the picture."""
    middles = (torch.arange(pixels) + 0.5) * length / pixels
    return torch.searchsorted(edges[1:-1].contiguous(), middles.to(edges), right=True)
