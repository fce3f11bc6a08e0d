"""Resolve positions to indices: counted from the front, or from the last that is not padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lensplug.errors import LensplugError

Position = int | Sequence[int] | Int[Tensor, "..."]
"""One position, or one for each example `[example]`."""
Positions = int | Sequence[int] | Int[Tensor, "..."]
"""One position, several, or a tensor `[position]` or `[example position]`."""


def watched_rows(tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch 1"]:
    """The last position of every example, padding or not: the row to watch if no row is cached.

    Attention rows that are not cached still reveal whether a hook edits patterns, which would have no effect.
    """
    return torch.full_like(tokens[:, :1], tokens.shape[1] - 1)


def resolve_position(
    position: Position, attention_mask: Int[Tensor, "batch pos"], *, name: str = "position"
) -> Int[Tensor, " batch"]:
    """A position of every example as an index from the left.

    Negative positions count from the last position that is not padding, others from the first of the
    tensor.

    Args:
        position: The same for every example, or one for each.
        attention_mask: 1 = attended.
        name: What it is called in an error.

    Raises:
        LensplugError: If it is not one position for each example, is out of range, or is padding in some example.
    """
    index, batch = _whole_numbers(position, attention_mask.device, name), len(attention_mask)
    if index.ndim > 1 or index.ndim == 1 and len(index) != batch:
        raise LensplugError(
            f"{name} is {position!r}, expected one position, or one for each example ({batch} here): call once for each"
            " position that you want."
        )
    return resolve_positions(index.reshape(-1, 1).expand(batch, 1), attention_mask, name=name)[:, 0]


def resolve_positions(
    positions: Positions, attention_mask: Int[Tensor, "batch pos"], *, name: str = "positions"
) -> Int[Tensor, "batch position"]:
    """Positions of every example as indices from the left, in the given order.

    Args:
        positions: The same for every example, or a tensor with a row for each.
        attention_mask: 1 = attended.
        name: What they are called in an error.

    Raises:
        LensplugError: If there are none, they are not whole numbers, or one is out of range or padding.
    """
    batch, length = attention_mask.shape
    requested = _whole_numbers(positions, attention_mask.device, name)
    if requested.numel() == 0:
        raise LensplugError(f"{name} is empty: give at least one position, or None for all where all can be read.")
    requested = requested.reshape(1, -1).expand(batch, -1) if requested.ndim < 2 else requested
    if requested.ndim > 2 or len(requested) != batch:
        raise LensplugError(f"{name} are {list(requested.shape)}, expected a row for each of {batch} examples.")
    attended = attention_mask.bool()
    if bool(attended.all()):  # in a few operations: every run and every analysis asks
        lowest, highest = requested.aminmax()
        if -length <= int(lowest) and int(highest) < length:
            return requested.remainder(length)
    ends = length - attended.flip(1).int().argmax(dim=1, keepdim=True)
    index = torch.where(requested < 0, ends + requested, requested)
    inside = (index >= 0) & (index < length)
    inside &= attended.gather(1, index.clamp(0, length - 1))
    if not bool(inside.all()):
        example, column = (~inside).nonzero()[0].tolist()
        _refuse(int(requested[example, column]), example, attended[example])
    return index


def counted_from_the_end(positions: Positions) -> bool:
    """Whether one of these is counted from the last position that is not padding."""
    return bool((_whole_numbers(positions, torch.device("cpu"), "positions") < 0).any())


def _whole_numbers(positions: Any, device: torch.device, name: str) -> Int[Tensor, ...]:
    """The positions as a tensor of whole numbers."""
    try:
        numbers = torch.as_tensor(positions, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LensplugError(f"{name} is {positions!r}, expected whole numbers.") from error
    if numbers.numel() and (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool):
        raise LensplugError(f"{name} is {positions!r} ({numbers.dtype}), expected whole numbers.")
    return numbers.long()


def _refuse(position: int, example: int, attended: Tensor) -> None:
    positions = attended.nonzero()[:, 0]
    if len(positions) == 0:
        raise LensplugError(f"position {position}: example {example} is nothing but padding.")
    raise LensplugError(
        f"position {position} is out of range or padding in example {example}: its positions are"
        f" {int(positions[0])} to {int(positions[-1])} (or -{len(positions)} to -1)."
    )
