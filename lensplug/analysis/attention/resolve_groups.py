"""Which positions an analysis merges: none, those of a region or a stretch of a medium, or as the user says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.positions.groups import Groups, group_positions
from lensplug.positions.modality_map import ModalityMap

GROUPS = 128
"""Maximum number of groups of a prompt with "modality": media are cut as finely as that allows."""
FINEST = 16
"""The most regions along a side of a view."""


Merge = Literal["modality"] | Shaped[Tensor, "..."] | Sequence[Groups] | None
"""None, "modality", a number for each position, or groups that have names, one for each example."""


def position_groups(
    groups: Merge,
    mask: Int[Tensor, "batch pos"],
    *,
    modality: ModalityMap | None = None,
    str_tokens: Sequence[Sequence[str]] | None = None,
) -> list[Groups]:
    """The groups of each example, in the order of the prompt. Without groups the positions themselves, padding too.

    Args:
        groups: None, "modality", a number for each position, or `Groups` of each example.
        mask: 1 where there is no padding.
        modality: Needed for "modality".
        str_tokens: To name the words of "modality", and single positions; without them the position does.

    Raises:
        LensplugError: If the groups have another form.
    """
    batch, length = mask.shape
    if groups is None:
        single_positions = torch.arange(length).expand(batch, -1).masked_fill(mask.cpu() == 0, -1)
        texts = [[f"position {position}" for position in range(length)]] * batch if str_tokens is None else str_tokens
        return [
            Groups(
                group_of_position,
                [
                    text if position >= 0 else ""
                    for position, text in zip(group_of_position.tolist(), each, strict=True)
                ],
            )
            for group_of_position, each in zip(single_positions, texts, strict=True)
        ]
    if isinstance(groups, Tensor):
        return [
            Groups(group_of_position, _named(group_of_position)) for group_of_position in _given(groups, batch, length)
        ]
    if not isinstance(groups, str) and all(isinstance(group_of_position, Groups) for group_of_position in groups):
        shapes = [len(group_of_position.of_position) for group_of_position in groups]
        if shapes != [length] * batch:
            raise LensplugError(
                f"groups are of {shapes} positions, expected {[length] * batch}: give one views.group_positions(...)"
                " for each example, of the same inputs."
            )
        return list(groups)
    if groups != "modality":
        raise LensplugError(
            f"groups is {groups!r}, expected None, 'modality', a tensor (the number of a group for each position), or a"
            " list of views.group_positions(...)."
        )
    if modality is None:
        raise LensplugError("groups='modality' needs to know which position is what: give modality=inputs.modality.")
    return [_of_media(modality, str_tokens, example) for example in range(batch)]


def _of_media(modality: ModalityMap, str_tokens: Sequence[Sequence[str]] | None, example: int) -> Groups:
    """The finest regions and stretches of media that stay below the maximum number of groups."""
    for blocks in range(FINEST, 0, -1):
        # One group for all newlines, which are scattered over the prompt, would connect the rest: flows 5 % too large.
        groups = group_positions(
            modality, str_tokens, example=example, blocks=blocks, stretches=blocks**2, join_newlines=True
        )
        if len(groups.names) <= GROUPS:
            break
    return groups


def _given(groups: Shaped[Tensor, ...], batch: int, length: int) -> Int[Tensor, "batch pos"]:
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise LensplugError(f"groups are {groups.dtype}, expected whole numbers: groups.long().")
    if tuple(groups.shape) not in ((length,), (batch, length)):
        raise LensplugError(
            f"groups have the shape {list(groups.shape)}, expected one number for each position: [{length}], or"
            f" [{batch}, {length}]."
        )
    return groups.long().cpu().expand(batch, -1)


def _named(group_of_position: Int[Tensor, " pos"]) -> list[str]:
    return [f"group {number}" for number in range(int(group_of_position.max()) + 1)]
