"""Which positions an attention flow merges: none, those of a region or a stretch of a medium, or as the user says.

Each token of text stays alone, and so does the row: it is the one node from which everything flows. Padding is
in no group.
"""

from __future__ import annotations

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.groups import Groups, group_positions
from lensplug.modality import ModalityMap

GROUPS = 128
"""With "modality", media are cut as finely as makes at most so many groups of a prompt: seconds for 24 layers."""
FINEST = 16
"""The most regions along a side of a view."""


def flow_groups(
    groups: str | Shaped[Tensor, ...] | None,
    modality: ModalityMap | None,
    mask: Int[Tensor, "batch pos"],
    row: Int[Tensor, " batch"],
) -> list[Groups]:
    """The groups of each example, in the order of the prompt. Without groups the positions themselves, padding too.

    Args:
        groups: None, "modality", or a number for each position.
        modality: Needed for "modality".
        mask: 1 where there is no padding.
        row: The position of each example that stays alone.

    Raises:
        LensplugError: If the groups are none of these, or a position is in none.
    """
    batch, length = mask.shape
    if groups is None:
        alone = torch.arange(length).expand(batch, -1).masked_fill(mask == 0, -1)
        return [Groups(own, [f"position {at}" if at >= 0 else "" for at in own.tolist()]) for own in alone]
    if not isinstance(groups, str):
        merged = [Groups(own, _named(own)) for own in _given(groups, batch, length)]
    elif groups != "modality":
        raise LensplugError(
            f"groups is {groups!r}, expected None, 'modality', or a tensor: the number of a group for each position."
        )
    elif modality is None:
        raise LensplugError("groups='modality' needs to know which position is what: give modality=inputs.modality.")
    else:
        merged = [_of_media(modality, example) for example in range(batch)]
    return [_with_row_alone(own, kept.bool(), int(at)) for own, kept, at in zip(merged, mask, row, strict=True)]


def _of_media(modality: ModalityMap, example: int) -> Groups:
    """The finest regions and stretches of media of which there are few enough."""
    for blocks in range(FINEST, 0, -1):
        # Newlines as one group, here and there in the prompt, would join all that lies between: flows 5% too large.
        groups = group_positions(modality, example=example, blocks=blocks, stretches=blocks**2, join_newlines=True)
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


def _named(own: Int[Tensor, " pos"]) -> list[str]:
    return [f"group {number}" for number in range(int(own.max()) + 1)]


def _with_row_alone(groups: Groups, kept: Shaped[Tensor, " pos"], row: int) -> Groups:
    """The same groups without padding, numbered as the prompt has them, and the row in one of its own."""
    if bool((groups.of_position[kept] < 0).any()):
        at = int((kept & (groups.of_position < 0)).nonzero()[0])
        raise LensplugError(
            f"position {at} is not padding and in no group (its number is {int(groups.of_position[at])}): what is left"
            " out would make flows too small. Give every position a number from 0."
        )
    of_position = groups.of_position.clone()
    of_position[row] = len(groups.names)
    return Groups(of_position, [*groups.names, f"position {row}"]).only(kept)
