"""Where clean activations go: layers, groups of positions, heads; and clean activations moved to the places there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.attention.resolve_groups import Merge, position_groups
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.groups import Groups

StreamActivation = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
HeadActivation = Literal["q", "k", "v", "z", "pattern"]
Activation = StreamActivation | HeadActivation
"""TransformerLens's short names: of the stream, and of heads."""
HEADS: tuple[HeadActivation, ...] = get_args(HeadActivation)
PatchedPlaces = Literal["position", "head", "head_and_position"]
"""What is patched at a time: a position of all heads, a head at all positions, or a head at a position."""


@dataclass(frozen=True, eq=False)
class Places:
    """Every group that an example has, and every head, in each layer."""

    groups: Int[Tensor, "example pos"]
    """The group of each position; -1: nothing is patched there."""
    n_heads: int
    """1: all together."""
    pattern: bool = False
    """Whether the activation is `[batch head query key]`: a position is then the one that looks."""

    @cached_property
    def is_present(self) -> Bool[Tensor, "example group"]:
        """Which groups an example has."""
        return (self.groups[:, :, None] == self._numbers).any(dim=1)

    @cached_property
    def _first_positions(self) -> list[int]:
        """The first position of each group in any example; that of a group which is nowhere is behind the last."""
        positions = torch.arange(self.groups.shape[1])[:, None]
        is_elsewhere = (self.groups[:, :, None] != self._numbers).all(dim=0)
        firsts: list[int] = positions.masked_fill(is_elsewhere, len(positions)).amin(dim=0).tolist()
        return firsts

    @property
    def _numbers(self) -> Int[Tensor, " group"]:
        return torch.arange(int(self.groups.max()) + 1)

    @cached_property
    def of_a_layer(self) -> list[tuple[int, int]]:
        """Group and head of each place, by their first positions."""
        groups = self.is_present.any(dim=0).nonzero()[:, 0].tolist()
        return list(product(sorted(groups, key=self._first_positions.__getitem__), range(self.n_heads)))

    def first_position(self, places: Sequence[tuple[int, int]]) -> int:
        """The first position of any of these places, in any example."""
        return min(self._first_positions[group] for group, _ in places)

    def batches(
        self, size: int, places: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[Sequence[tuple[int, int]]]:
        """Some places of a layer, by default all, so many at a time, as evenly as they can be."""
        places = self.of_a_layer if places is None else places
        n_batches = -(-len(places) // size)
        for index in range(n_batches):
            start, stop = (len(places) * edge // n_batches for edge in (index, index + 1))
            yield places[start:stop]

    def masks(
        self, places: Sequence[tuple[int, int]], activation: Tensor, one_head: bool
    ) -> Bool[Tensor, "place example ..."]:
        """Where each place is in an activation of one copy of the examples, `[example ...]`, to be broadcast.

        Args:
            places: Group and head of each.
            activation: Of all examples.
            one_head: Whether one head is meant, or all.
        """
        at_position, at_head = (3, 2) if self.pattern else (2, 3)  # behind the axes of places and examples
        group, head = torch.tensor(places).T
        shape = [len(places), len(self.groups), *[1] * (activation.ndim - 1)]
        shape[at_position] = self.groups.shape[1]
        mask = (self.groups == group[:, None, None]).view(shape)
        if one_head:
            heads = torch.arange(activation.shape[at_head - 1])
            shape = [len(places), *[1] * activation.ndim]
            shape[at_head] = len(heads)
            mask = mask & (heads == head[:, None]).view(shape)
        on_device: Tensor = mask.to(activation.device)
        return on_device

    def laid_out(self, values: Sequence[Float[Tensor, "place example"]]) -> Float[Tensor, "example layer group head"]:
        """What the places of each layer gave, in their order; NaN where an example has no such group."""
        is_present = self.is_present
        shape = (len(is_present), len(values), is_present.shape[1], self.n_heads)
        table = torch.full(shape, torch.nan, dtype=torch.float32)
        group, head = torch.tensor(self.of_a_layer).T
        table[:, :, group, head] = torch.stack([each.float().cpu().T for each in values], dim=1)
        return table.masked_fill(~is_present[:, None, :, None], torch.nan)


def patched_groups(groups: Merge, by: PatchedPlaces, corrupt: MultimodalInput) -> list[Groups]:
    """The groups of positions that are patched together, of each example.

    Raises:
        LensplugError: If nothing is left to patch, or heads are to be patched at groups of positions.
    """
    mask = corrupt.attention_mask.cpu()
    if by == "head":
        if groups is not None:
            raise LensplugError("by='head' patches all positions: leave groups out, or use by='head_and_position'.")
        return [Groups(groups_of_example.long() - 1, ["all positions"]) for groups_of_example in mask]
    merged = position_groups(groups, mask, modality=corrupt.modality.to("cpu"), str_tokens=corrupt.str_tokens)
    patched = [
        groups_of_example.only(real.bool())
        if groups is None
        else Groups(groups_of_example.of_position.masked_fill(real == 0, -1), groups_of_example.names)
        for groups_of_example, real in zip(merged, mask, strict=True)
    ]
    for example, groups_of_example in enumerate(patched):
        if not bool((groups_of_example.of_position >= 0).any()):
            raise LensplugError(f"no position of example {example} is in a group: there is nothing to patch.")
    return patched


def refuse_no_heads(activation: Activation, by: PatchedPlaces) -> None:
    """Raise if heads are to be patched of what has none.

    Raises:
        LensplugError: Then.
    """
    if by != "position" and activation not in HEADS:
        raise LensplugError(f"{activation!r} has no heads: by='position', or one of {', '.join(map(repr, HEADS))}.")


def moved(activation: Tensor, aligned: Int[Tensor, "batch pos"], *, is_pattern: bool) -> Tensor:
    """A clean activation rearranged to the positions of the corrupt prompt; 0 at its padding.

    Args:
        activation: Of the clean prompt.
        aligned: From `counterparts`.
        is_pattern: Whether it is a pattern, which has positions in two axes.
    """
    source_positions: Any = aligned.to(activation.device)
    for axis in (2, 3) if is_pattern else (1,):
        shape = list(activation.shape)
        shape[axis] = source_positions.shape[1]
        index = source_positions.view([size if dimension in (0, axis) else 1 for dimension, size in enumerate(shape)])
        activation = activation.gather(axis, index.clamp(min=0).expand(shape)).masked_fill(index < 0, 0)
    return activation
