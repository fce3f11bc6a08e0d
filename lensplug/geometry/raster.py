"""Boxes that form a grid, and the pixels under them: values painted, mass spread, parts of the image found again.

The boxes of one view are the products of a few intervals of x and of y. So a view is a small matrix of values,
looked up or spread along each side, whatever the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Raster:
    """Boxes with an area, none of which overlap, over an image of `height` x `width` pixels."""

    x: Float[Tensor, "column 2"]
    y: Float[Tensor, "row 2"]
    """Start and end of each interval, ascending."""
    column: Int[Tensor, " token"]
    row: Int[Tensor, " token"]
    """The intervals of each box."""
    height: int
    width: int

    @classmethod
    def of(cls, boxes: Float[Tensor, "token 4"], height: int, width: int) -> Raster:
        """The raster of boxes x0 y0 x1 y1, in fp64: edges far from 0 keep their fractions."""
        boxes = boxes.double().cpu()
        x, column = torch.unique(boxes[:, [0, 2]], dim=0, return_inverse=True)
        y, row = torch.unique(boxes[:, [1, 3]], dim=0, return_inverse=True)
        return cls(x, y, column, row, height, width)

    def paint(
        self, values: Float[Tensor, " token"], at: tuple[Float[Tensor, " y"], Float[Tensor, " x"]] | None = None
    ) -> Float[Tensor, "y x"]:
        """The value of the box that contains a point, 0 if there is none.

        Args:
            values: One a box.
            at: The y and the x of a lattice of points; the middles of all pixels if not given.
        """
        y, x = at if at is not None else (_middles(self.height), _middles(self.width))
        # Looked up, not multiplied: a value may be infinite (a masked score, a log-probability of 0).
        cells = torch.zeros(len(self.y) + 1, len(self.x) + 1)
        cells[self.row, self.column] = values
        return cells[_holder(self.y, y)][:, _holder(self.x, x)]

    def spread(self, values: Float[Tensor, " token"]) -> Float[Tensor, "height width"]:
        """Each value is shared out among the pixels under its box, by area: sums are kept."""
        rows, columns = _overlaps(self.y, self.height), _overlaps(self.x, self.width)
        cells = torch.zeros(len(self.y), len(self.x), dtype=torch.float64)
        cells[self.row, self.column] = values.double()
        return ((rows / _lengths(self.y)).T @ cells @ (columns / _lengths(self.x))).float()

    def share(self, mask: Bool[Tensor, "height width"]) -> Float[Tensor, " token"]:
        """The fraction of each box's area under a mask."""
        rows, columns = _overlaps(self.y, self.height), _overlaps(self.x, self.width)
        shares = (rows / _lengths(self.y)) @ mask.double() @ (columns / _lengths(self.x)).T
        return shares[self.row, self.column].float()

    def share_of_box(self, x0: float, y0: float, x1: float, y1: float) -> Float[Tensor, " token"]:
        """The fraction of each box's area inside another box."""
        across = (self.x[:, 1].clamp(max=x1) - self.x[:, 0].clamp(min=x0)).clamp(min=0) / _lengths(self.x)[:, 0]
        down = (self.y[:, 1].clamp(max=y1) - self.y[:, 0].clamp(min=y0)).clamp(min=0) / _lengths(self.y)[:, 0]
        return (across[self.column] * down[self.row]).float()


def _lengths(intervals: Float[Tensor, "interval 2"]) -> Float[Tensor, "interval 1"]:
    return intervals[:, 1:] - intervals[:, :1]


def _middles(pixels: int) -> Float[Tensor, " pixel"]:
    return torch.arange(pixels, dtype=torch.float64) + 0.5


def _holder(intervals: Float[Tensor, "interval 2"], points: Float[Tensor, " point"]) -> Int[Tensor, " point"]:
    """The interval that contains each point; one past the last if there is none."""
    inside = (points >= intervals[:, :1]) & (points < intervals[:, 1:])
    none = torch.ones(1, len(points), dtype=torch.bool)
    return torch.cat([inside, none]).int().argmax(dim=0)


def _overlaps(intervals: Float[Tensor, "interval 2"], pixels: int) -> Float[Tensor, "interval pixel"]:
    """How much of each pixel an interval covers."""
    starts = torch.arange(pixels, dtype=torch.float64)
    ends = torch.minimum(intervals[:, 1:], starts + 1)
    return (ends - torch.maximum(intervals[:, :1], starts)).clamp(min=0)
