"""Cells of an image: what the positions of a view see, as boxes in the image's own pixels.

A vision tower gets views: images of a fixed size, made by scaling, padding and cropping. It cuts each
into square patches, and a connector may merge neighbours to one position: a cell. Pixels at the right and
at the bottom that fill no patch are seen by none.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.geometry import ImageGrid


def cells(count: int, size: int, *, scale: float, limit: int, origin: float = 0.0) -> Float[Tensor, "cell 2"]:
    """Start and end of each cell along one axis, in pixels of the image, cut off at its borders.

    Args:
        count: Cells.
        size: Size of a cell, in pixels of the view.
        scale: Pixels of the image for each pixel of the view.
        limit: The width (height) of the image.
        origin: Where the view begins, in pixels of the image; below 0 where it is padded.
    """
    edges = (origin + torch.arange(count + 1, dtype=torch.float64) * size * scale).clamp(0, limit)
    return torch.stack([edges[:-1], edges[1:]], dim=1)


def boxes(x: Float[Tensor, "column 2"], y: Float[Tensor, "row 2"]) -> Float[Tensor, "cell 4"]:
    """x0 y0 x1 y1 of every cell, row by row, from the start and end of each column and row."""
    rows, columns = len(y), len(x)
    y_all = y[:, None].expand(rows, columns, 2)
    x_all = x[None].expand(rows, columns, 2)
    return torch.stack([x_all[..., 0], y_all[..., 0], x_all[..., 1], y_all[..., 1]], dim=-1).flatten(0, 1)


def squeezed(
    height: int, width: int, *, view_px: int, side: int, cell_px: int, rows: int = 1, columns: int = 1
) -> Float[Tensor, "token 4"]:
    """The boxes of an image scaled to rows x columns views, its proportions not kept; view after view, row by row.

    Args:
        height: Height of the image.
        width: Width of the image.
        view_px: Height and width of a view.
        side: Cells along each side of a view.
        cell_px: Height and width of a cell, in pixels of the view.
        rows: Number of rows of views.
        columns: Number of columns of views.
    """
    x_scale, y_scale = width / (columns * view_px), height / (rows * view_px)
    return torch.cat(
        [
            boxes(
                cells(side, cell_px, scale=x_scale, limit=width, origin=column * width / columns),
                cells(side, cell_px, scale=y_scale, limit=height, origin=row * height / rows),
            )
            for row in range(rows)
            for column in range(columns)
        ]
    )


def strided_cells(view_px: int, *, unit_px: int, stride: int) -> Float[Tensor, "cell 2"]:
    """Start and end of each cell along a view, in its pixels, behind convolutions with a stride.

    With odd kernels, padded by half of them, each is centred on the first unit of its stride: position i has its middle
    on unit `i * stride`, not between it and the next position's. Its cell goes half a stride to both sides of that
    middle; the first and the last reach the edge. The kernels see more than the cell.

    Args:
        view_px: Height and width of a view.
        unit_px: What the convolutions count in, in pixels of the view: the edge of a patch, or 1.
        stride: Units from a position to the next.
    """
    count = -(-(view_px // unit_px) // stride)
    edges = ((torch.arange(count + 1, dtype=torch.float64) - 0.5) * stride + 0.5) * unit_px
    edges[0], edges[-1] = 0, view_px
    return torch.stack([edges[:-1], edges[1:]], dim=1)


def strided(
    height: int, width: int, *, view_px: int, unit_px: int, stride: int, rows: int = 1, columns: int = 1
) -> Float[Tensor, "token 4"]:
    """As `squeezed`, with the cells of `strided_cells`.

    Args:
        height: Height of the image.
        width: Width of the image.
        view_px: Height and width of a view.
        unit_px: As of `strided_cells`.
        stride: As of `strided_cells`.
        rows: Number of rows of views.
        columns: Number of columns of views.
    """
    share = strided_cells(view_px, unit_px=unit_px, stride=stride) / view_px
    return torch.cat(
        [
            boxes((column + share) * width / columns, (row + share) * height / rows)
            for row in range(rows)
            for column in range(columns)
        ]
    )


def whole(height: int, width: int, *, rows: int, columns: int) -> ImageGrid:
    """The grid of an image that is scaled to rows x columns cells of one size, its proportions kept or not."""
    placed = boxes(
        cells(columns, 1, scale=width / columns, limit=width), cells(rows, 1, scale=height / rows, limit=height)
    )
    none = torch.zeros(len(placed), dtype=torch.long)
    return ImageGrid(placed.float(), none, none.bool(), width, height)


def tiles_and_whole(
    height: int, width: int, *, view_px: int, side: int, cell_px: int, rows: int, columns: int
) -> ImageGrid:
    """The grid of an image that is seen in rows x columns tiles and then whole; whole alone if there are no tiles."""
    geometry = {"view_px": view_px, "side": side, "cell_px": cell_px}
    base_view = squeezed(height, width, **geometry)
    placed, order = base_view, [0]
    if rows * columns:
        placed = torch.cat([squeezed(height, width, rows=rows, columns=columns, **geometry), base_view])
        order = [*range(1, rows * columns + 1), 0]
    view = torch.tensor(order).repeat_interleave(len(base_view))
    return ImageGrid(placed.float(), view, torch.zeros(len(placed), dtype=torch.bool), width, height)
