"""Regions of an image as users name them: boxes, masks of pixels, and the cells of a grid laid over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.validation.masks import as_mask

Region = Sequence[Any] | np.ndarray | Shaped[Tensor, "*axes"]
"""A box x0 y0 x1 y1, or a mask of pixels `[height width]`: True and False, 1 and 0, or, as in images, 255 and 0."""


def read_region(region: Region, height: int, width: int) -> Float[Tensor, " side"] | Bool[Tensor, "height width"]:
    """A box in fp64, or a mask.

    Raises:
        LensplugError: If it is neither, or a box has no area, or a mask other values.
    """
    size = (height, width)
    try:
        values = torch.as_tensor(np.asarray(region) if isinstance(region, list | tuple) else region).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise LensplugError(
            f"the region is a {type(region).__name__}, expected a mask {list(size)}, or a box x0 y0 x1 y1."
        ) from error
    if values.shape == (4,):
        x0, y0, x1, y1 = values.double().tolist()
        if not (x0 < x1 and y0 < y1):
            raise LensplugError(f"the box {values.tolist()} has no area: expected x0 < x1 and y0 < y1, in pixels.")
        return values.double()
    if values.shape != size:
        raise LensplugError(
            f"the region has the shape {list(values.shape)}, expected a box x0 y0 x1 y1, or a mask of the shape"
            f" {list(size)} (height, width)."
        )
    white = values == 255
    is_picture = bool((white | (values == 0)).all())
    mask: Tensor = white if is_picture else as_mask(values, size, "the region")
    return mask


def pixels_of(region: Region, height: int, width: int) -> Bool[Tensor, "height width"]:
    """The pixels of a region: those of a mask, or those whose middles are in a box.

    Raises:
        LensplugError: As `read_region`, or if there is no such pixel.
    """
    known = read_region(region, height, width)
    if known.dtype != torch.bool:
        x0, y0, x1, y1 = known.tolist()
        x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
        known = ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))[None]
    if not bool(known.any()):
        raise LensplugError(
            f"a region has no pixel of the image of {width} x {height}: coordinates are its own pixels."
        )
    return known


def box_around(mask: Bool[Tensor, "height width"]) -> Float[Tensor, " side"]:
    """The smallest box x0 y0 x1 y1 that has every pixel of a mask."""
    y, x = (mask.any(dim=dim).nonzero()[:, 0] for dim in (1, 0))
    return torch.stack([x[0], y[0], x[-1] + 1, y[-1] + 1]).float()


def cells_of(rows: int, columns: int, height: int, width: int) -> Float[Tensor, "cell 4"]:
    """The boxes of a grid's cells, row by row: whole pixels, each in one cell.

    Raises:
        LensplugError: If there are more rows or columns than pixels, or none.
    """
    if not (1 <= rows <= height and 1 <= columns <= width):
        raise LensplugError(
            f"a grid of {rows} rows and {columns} columns on an image of {height} rows and {width} columns of pixels:"
            " expected at least one, and a pixel for each."
        )
    y, x = (
        [round(index * size / count) for index in range(count + 1)]
        for count, size in ((rows, height), (columns, width))
    )
    return torch.tensor(
        [[x[column], y[row], x[column + 1], y[row + 1]] for row in range(rows) for column in range(columns)]
    ).float()
