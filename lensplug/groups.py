"""Positions pooled into groups: words, regions of a picture, stretches of a sound.

A group of key positions gets the sum of their attention, a group of query positions the mean of theirs, so that
pooled rows still sum to 1. Groups are made by `lensplug.join_pieces` (words) and `views.group_positions` (media).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.errors import LensplugError


@dataclass(frozen=True)
class Groups:
    """Groups of the positions of one example, in the order of the prompt. Padding is in none."""

    of_position: Int[Tensor, " pos"]
    """The group of each position; -1 for padding."""
    names: list[str]

    def pool(self, pattern: Float[Tensor, "head query key"]) -> Float[Tensor, "head group group"]:
        """Sum over the keys of a group, mean over its queries.

        Raises:
            LensplugError: If the pattern is of other positions.
        """
        member = self._member(pattern.shape[-1])
        attention = pattern.float().cpu()
        return (member / member.sum(dim=0)).T @ attention @ member

    def sums(self, values: Float[Tensor, "*axes pos"]) -> Float[Tensor, "*axes group"]:
        """The sum of each group's values.

        Raises:
            LensplugError: If the values are of other positions.
        """
        return values.float().cpu() @ self._member(values.shape[-1])

    def only(self, kept: Bool[Tensor, " pos"]) -> Groups:
        """The groups of some positions; the others are in none, and a group without any is gone."""
        of_position = self.of_position.masked_fill(~kept.cpu(), -1)
        left = torch.unique(of_position[of_position >= 0])
        renumbered = torch.full((len(self.names) + 1,), -1)
        renumbered[left] = torch.arange(len(left))
        return Groups(renumbered[of_position], [self.names[group] for group in left.tolist()])

    def _member(self, length: int) -> Float[Tensor, "pos group"]:
        """1 where a position is in a group."""
        if len(self.of_position) != length:
            raise LensplugError(
                f"the groups are of {len(self.of_position)} positions, the attention is of {length}: make them from"
                " the tokens of the same example, padding included."
            )
        return (self.of_position[:, None] == torch.arange(len(self.names))).float()
