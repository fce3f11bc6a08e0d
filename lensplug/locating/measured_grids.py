"""From the interval of each position to the geometry of a medium: a grid as a family's own file would give it.

Positions of one view form rows and columns. Measured edges are off by up to a stripe, here and there differently; so
edges of a row, and of a column, are those of its positions' median, and where two neighbours overlap or leave a gap of
a stripe, they meet in its middle. Where a picture is seen in several views, a position whose box lies over an earlier
one's begins the next view, if those behind it do as well. The base view is the first, or one of much larger boxes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

OVERLAP = 0.5
"""Boxes that share more than this of the smaller one are of two views."""
IN_A_ROW = 3
"""So many boxes over earlier ones, one after the other, are the beginning of a view; fewer were measured badly."""
LARGER = 2.0
"""By this factor boxes of a base view that is not the first are larger."""
SAME = 0.5
"""Middles that are nearer than this part of a box's length are of one row, or column."""

Boxes = Float[Tensor, "token 4"]


def views_of(boxes: Boxes) -> Int[Tensor, " token"]:
    """The view of each box: 0 for the base view, 1.. for the others. Boxes of NaN are in the view before them."""
    view, current, covered, run = torch.zeros(len(boxes), dtype=torch.long), 0, boxes[:0], 0
    for token, box in enumerate(boxes):
        if not bool(box.isnan().any()):
            run = run + 1 if bool((_of_smaller(covered, box) > OVERLAP).any()) else 0
            covered = torch.cat([covered, box[None]])
            if run == IN_A_ROW:
                current, covered, run = current + 1, boxes[token - run + 1 : token + 1], 0
                view[token - IN_A_ROW + 1 : token] = current
        view[token] = current
    return base_first(boxes, view)


def base_first(boxes: Boxes, view: Int[Tensor, " token"]) -> Int[Tensor, " token"]:
    """Views, numbered in their order, numbered anew: the base view, which may not be the first, is 0."""
    n_views = int(view.max()) + 1
    areas = torch.stack([_areas(boxes[view == one]).nanmedian() for one in range(n_views)])
    base = int(areas.argmax()) if bool(areas.max() > LARGER * areas[0]) else 0
    order = [base, *(one for one in range(n_views) if one != base)]
    return torch.tensor([order.index(one) for one in range(n_views)])[view]


def in_rows_and_columns(boxes: Boxes, view: Int[Tensor, " token"], stripe: tuple[float, float]) -> Boxes:
    """Boxes whose edges are those of whole rows and columns of their view.

    Args:
        boxes: As measured.
        view: The view of each.
        stripe: The resolution along x and y; a gap of more than two of these is one of the model's own.
    """
    aligned = boxes.clone()
    for one in range(int(view.max()) + 1):
        chosen = (view == one) & ~boxes.isnan().any(dim=1)
        for axis, length in enumerate(stripe):
            sides = [axis, axis + 2]
            aligned[chosen.nonzero(), torch.tensor(sides)] = _aligned(boxes[chosen][:, sides], length)
    return aligned


def _aligned(intervals: Float[Tensor, "token 2"], stripe: float) -> Float[Tensor, "token 2"]:
    if not len(intervals):
        return intervals
    group = _groups(intervals)
    edges = torch.stack([intervals[group == one].median(dim=0).values for one in range(int(group.max()) + 1)])
    edges, group = _without_slivers(edges, group)
    gaps = edges[1:, 0] - edges[:-1, 1]
    meet = gaps.abs() <= 2 * stripe  # a wider gap is one of the model's own
    middle = (edges[1:, 0] + edges[:-1, 1]) / 2
    edges[1:, 0] = torch.where(meet, middle, edges[1:, 0])
    edges[:-1, 1] = torch.where(meet, middle, edges[:-1, 1])
    return edges[group]


def _without_slivers(
    edges: Float[Tensor, "group 2"], group: Int[Tensor, " token"]
) -> tuple[Float[Tensor, "kept 2"], Int[Tensor, " token"]]:
    """Rows (columns) that lie within another of more positions are joined to it: there a part of the box was missed."""
    counts = torch.bincount(group)
    kept: list[int] = []
    joins = torch.arange(len(edges))
    for one in counts.argsort(descending=True, stable=True).tolist():
        for other in kept:
            shared = torch.minimum(edges[one, 1], edges[other, 1]) - torch.maximum(edges[one, 0], edges[other, 0])
            if bool(shared > OVERLAP * (edges[[one, other], 1] - edges[[one, other], 0]).min()):
                joins[one] = other
                break
        else:
            kept.append(one)
    kept.sort()
    return edges[kept], torch.tensor([kept.index(join) for join in joins.tolist()])[group]


def _groups(intervals: Float[Tensor, "token 2"]) -> Int[Tensor, " token"]:
    """Which row, or column, each interval is of, counted from the first."""
    middle, length = intervals.mean(dim=1), (intervals[:, 1] - intervals[:, 0])
    order = middle.argsort()
    is_next = (middle[order][1:] - middle[order][:-1]) > SAME * torch.minimum(length[order][1:], length[order][:-1])
    group = torch.zeros(len(intervals), dtype=torch.long)
    group[order[1:]] = is_next.long().cumsum(dim=0)
    return group


def overlap_of(found: Boxes, expected: Boxes) -> Float[Tensor, " token"]:
    """For each position, what its two boxes share, as a fraction of both together (intersection over union)."""
    shared = _shared(found, expected)
    overlap: Tensor = shared / (_areas(found) + _areas(expected) - shared)
    return overlap


def _of_smaller(boxes: Boxes, box: Float[Tensor, " side"]) -> Float[Tensor, " token"]:
    """What each of the boxes shares with one, as a fraction of the smaller."""
    fraction: Tensor = _shared(boxes, box[None]) / torch.minimum(_areas(boxes), _areas(box[None]))
    return fraction


def _shared(first: Boxes, second: Float[Tensor, "token_or_one 4"]) -> Float[Tensor, " token"]:
    """The area that is in both."""
    return _areas(torch.cat([torch.maximum(first, second)[:, :2], torch.minimum(first, second)[:, 2:]], dim=1))


def _areas(boxes: Boxes) -> Float[Tensor, " token"]:
    areas: Tensor = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    return areas
