"""Positions as users say them, to indices: counted from the front, or from the last that is not padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from lensplug.errors import LensplugError

Positions = int | Sequence[int] | Int[Tensor, " *axes"]
"""One position, several, or a tensor `[position]` or `[example position]`."""


def watched_rows(tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch 1"]:
    """The last position of every example, padding or not: what is looked at where no row is kept.

    Attention rows that nobody keeps still show whether a hook edits patterns, which would change nothing.
    """
    return torch.full_like(tokens[:, :1], tokens.shape[1] - 1)


def resolve_position(position: int, attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """A position of every example as an index from the left.

    Negative positions count from the last position that is not padding, others from the first of the
    tensor.

    Raises:
        LensplugError: If the position is out of range, or is padding in some example.
    """
    return resolve_positions(position, attention_mask)[:, 0]


def resolve_positions(
    positions: Positions, attention_mask: Int[Tensor, "batch pos"], *, name: str = "positions"
) -> Int[Tensor, "batch position"]:
    """Positions of every example as indices from the left, in the order given.

    Args:
        positions: The same for every example, or a tensor with a row for each.
        attention_mask: 1 = attended.
        name: What they are called in an error.

    Raises:
        LensplugError: If there are none, they are not whole numbers, or one is out of range or padding.
    """
    batch, length = attention_mask.shape
    try:
        wanted = torch.as_tensor(positions, device=attention_mask.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LensplugError(f"{name} are {positions!r}, expected whole numbers.") from error
    if wanted.numel() == 0:
        raise LensplugError(f"{name} is empty: give at least one position, or None for all where all can be read.")
    if wanted.is_floating_point() or wanted.dtype == torch.bool:
        raise LensplugError(f"{name} are {wanted.dtype}, expected whole numbers.")
    wanted = wanted.long().reshape(1, -1).expand(batch, -1) if wanted.ndim < 2 else wanted.long()
    if wanted.ndim > 2 or len(wanted) != batch:
        raise LensplugError(f"{name} are {list(wanted.shape)}, expected a row for each of {batch} examples.")
    attended = attention_mask.bool()
    last = length - 1 - attended.flip(1).int().argmax(dim=1, keepdim=True)
    index = torch.where(wanted < 0, last + 1 + wanted, wanted)
    inside = (index >= 0) & (index < length)
    inside &= attended.gather(1, index.clamp(0, length - 1))
    if not bool(inside.all()):
        example, at = (~inside).nonzero()[0].tolist()
        _refuse(int(wanted[example, at]), example, attended[example])
    return index


def _refuse(position: int, example: int, attended: Tensor) -> None:
    positions = attended.nonzero()[:, 0]
    if len(positions) == 0:
        raise LensplugError(f"position {position}: example {example} is nothing but padding.")
    raise LensplugError(
        f"position {position} is out of range or padding in example {example}: its positions are"
        f" {int(positions[0])} to {int(positions[-1])} (or -{len(positions)} to -1)."
    )
