"""Which positions an attention flow merges.

Each token of text stays alone, and so does the row: it is the one node from which everything flows. Padding is
in no group.
"""

from __future__ import annotations

from jaxtyping import Int, Shaped
from torch import Tensor

from lensplug.analysis.attention.resolve_groups import Merge, position_groups
from lensplug.errors import LensplugError
from lensplug.positions.groups import Groups
from lensplug.positions.modality_map import ModalityMap


def flow_groups(
    groups: Merge,
    modality: ModalityMap | None,
    mask: Int[Tensor, "batch pos"],
    row: Int[Tensor, " batch"],
) -> list[Groups]:
    """The groups of each example, in the order of the prompt. Without groups the positions themselves, padding too.

    Args:
        groups: As for `position_groups`.
        modality: Needed for "modality".
        mask: 1 where there is no padding.
        row: The position of each example that stays alone.

    Raises:
        LensplugError: If the groups have another form, or a position belongs to no group.
    """
    merged = position_groups(groups, mask, modality=modality)
    if groups is None:
        return merged
    return [
        _with_row_alone(groups_of_example, is_real.bool(), int(row_position))
        for groups_of_example, is_real, row_position in zip(merged, mask, row, strict=True)
    ]


def _with_row_alone(groups: Groups, is_real: Shaped[Tensor, " pos"], row: int) -> Groups:
    """The same groups without padding, numbered in prompt order, with the row in a group of its own."""
    if bool((groups.of_position[is_real] < 0).any()):
        position = int((is_real & (groups.of_position < 0)).nonzero()[0])
        raise LensplugError(
            f"position {position} is not padding and in no group (its number is {int(groups.of_position[position])}):"
            " what is left"
            " out would make flows too small. Give every position a number from 0."
        )
    of_position = groups.of_position.clone()
    of_position[row] = len(groups.names)
    return Groups(of_position, [*groups.names, f"position {row}"]).only(is_real)
