"""From how far each position moved, part by part, to the interval of the medium that it sees.

Idea: with the encoder's attention off (`lensplug.hf.encoder_attention`) a position moves where what it sees was
changed, and hardly elsewhere: scaling blends neighbouring pixels, convolutions neighbouring frames. Its interval
are the parts, in one piece around the one that moves it most, which move it by at least a share of that. Changes are
random from pixel to pixel, so that the square of a movement grows with the area that was changed: the squares at the
first and the last part say how much of these it sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MOVED = 0.07
"""The least part of its largest movement that counts as seen. Scaling blends in less of what lies beyond."""
UNSEEN_BY = 0.25
"""The share of positions of which none is taken to see a given part."""
STILL = 1e-4
"""A position that moves less than this, as a fraction of the largest movement of any, sees nothing of the medium."""


@dataclass(frozen=True)
class Intervals:
    """Along one side, for each position."""

    start: Float[Tensor, " token"]
    stop: Float[Tensor, " token"]
    """NaN where nothing moves it."""
    inside: Bool[Tensor, "token part"]
    """Which parts are in the interval."""
    concentration: Float[Tensor, " token"]
    """How much of its movement (squared) is within the interval, 0 to 1."""


def intervals_of(moved: Float[Tensor, "token part"], edges: Float[Tensor, " edge"]) -> Intervals:
    """The interval of each position.

    Args:
        moved: How far each position moved when each part was changed.
        edges: Where parts begin and end.
    """
    total = moved
    moved = _own_movement(moved)
    largest, strongest = moved.max(dim=1)
    inside = _around(moved >= MOVED * largest[:, None], strongest)
    is_still = total.amax(dim=1) <= STILL * total.max()
    inside &= ~is_still[:, None]
    parts = torch.arange(moved.shape[1])
    first = torch.where(inside, parts, len(parts)).amin(dim=1).clamp(max=len(parts) - 1)
    last = torch.where(inside, parts, -1).amax(dim=1)
    unseen = 1 - (moved / _within(moved, first, last)[:, None]).square().clamp(max=1).nan_to_num(1)
    lengths, tokens = edges[1:] - edges[:-1], torch.arange(len(moved))
    start = edges[first] + unseen[tokens, first] * lengths[first]
    stop = edges[last + 1] - unseen[tokens, last] * lengths[last]
    return Intervals(
        start.masked_fill(is_still, torch.nan),
        stop.masked_fill(is_still, torch.nan),
        inside,
        (moved.square() * inside).sum(dim=1) / total.square().sum(dim=1),
    )


def _own_movement(moved: Float[Tensor, "token part"]) -> Float[Tensor, "token part"]:
    """Movement without what moves (nearly) all positions alike: a norm over the whole medium, say.

    That is told by the positions that a part moves least: at least a quarter of them do not see it.
    """
    scale = moved.amax(dim=1, keepdim=True)
    relative = (moved / scale).nan_to_num(0).square()
    common = relative.quantile(UNSEEN_BY, dim=0, interpolation="lower")
    own: Tensor = (relative - common).clamp(min=0).sqrt() * scale
    return own


def share_inside(moved: Float[Tensor, "token part"], inside: Bool[Tensor, "token part"]) -> Float[Tensor, " token"]:
    """How much of each position's movement (squared) is at these parts; NaN where it does not move."""
    squared = moved.double().square()
    share: Tensor = (squared * inside).sum(dim=1) / squared.sum(dim=1)
    return share.float()


def _within(moved: Float[Tensor, "token part"], first: Tensor, last: Tensor) -> Float[Tensor, " token"]:
    """How far a part that is wholly seen moves each position: the median between first and last.

    NaN where there is none between them: there edges are those of parts.
    """
    parts = torch.arange(moved.shape[1])
    is_within = (parts > first[:, None]) & (parts < last[:, None])
    return moved.masked_fill(~is_within, torch.nan).nanmedian(dim=1).values


def _around(chosen: Bool[Tensor, "token part"], centre: Tensor) -> Bool[Tensor, "token part"]:
    """Of what is chosen, what hangs together with the centre."""
    parts = torch.arange(chosen.shape[1])
    gaps = ~chosen
    before = torch.where(gaps & (parts < centre[:, None]), parts, -1).amax(dim=1)
    behind = torch.where(gaps & (parts > centre[:, None]), parts, len(parts)).amin(dim=1)
    around: Tensor = (parts > before[:, None]) & (parts < behind[:, None])
    return around
