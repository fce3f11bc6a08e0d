"""How much of each query's attention falls on each modality, in every head: what head specialisation reads.

Three sums for each part of the prompt: the mass, the sum of p log p, and the largest weight. The first position that
is not padding, where many heads rest, is a part of its own; so are the other special tokens, and the views of an image
(whole, tiles, newlines). Which of them make a class can be said afterwards: sums of parts are sums of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.modality_map import MODALITIES, ModalityMap
from lensplug.reductions import names as hook_names

VIEWS = ("base", "tiles", "newline")
"""The parts of an image whose grid is known: it as a whole, its tiles, the tokens that only end a row."""
PARTS = ("first", "special", *VIEWS, *(name for name in MODALITIES if name != "pad"))
"""The first position, the other special tokens, the views of images, then the rest of each modality; disjoint."""


@dataclass(frozen=True)
class ModalityMass:
    """Keep `[batch head query part measure]` of every layer, in fp32; parts are those of `PARTS` that occur."""

    def begin(self, inputs: MultimodalInput, layers: int, heads: int) -> _Masses:
        """Empty, for one run."""
        return _Masses(_occurring(inputs.modality))

    def numbers(self, inputs: MultimodalInput, layers: int, heads: int) -> int:
        """How many numbers will be kept."""
        return layers * heads * inputs.tokens.numel() * _occurring(inputs.modality).shape[1] * 3


@dataclass
class _Masses:
    member: Bool[Tensor, "batch part pos"]
    named: dict[str, Float[Tensor, "batch head query part 3"]] = field(default_factory=dict)

    @property
    def noted(self) -> dict[str, Any]:
        """Which positions belong to each part."""
        return {"modality_parts": self.member}

    def __call__(self, layer: int, start: int, pattern: Float[Tensor, "batch head row key"]) -> None:
        name = hook_names.modality_mass(layer)
        batch, heads, rows, keys = pattern.shape
        if name not in self.named:
            self.named[name] = pattern.new_zeros(batch, heads, self.member.shape[-1], self.member.shape[1], 3)
        self.named[name][:, :, start : start + rows] = measure(pattern, self.member[..., :keys].to(pattern.device))


def parts(modality: ModalityMap, sink: Bool[Tensor, "batch pos"] | None = None) -> Bool[Tensor, "batch part pos"]:
    """Which position belongs to which of `PARTS`; padding to none.

    Args:
        modality: Which position is what.
        sink: Mask to use in place of the first position.
    """
    numbers = part_numbers(modality).masked_fill(first_position(modality) if sink is None else sink, 0)
    return numbers[:, None] == torch.arange(len(PARTS), device=numbers.device)[:, None]


def part_numbers(modality: ModalityMap) -> Int[Tensor, "batch pos"]:
    """The part of `PARTS` that each position belongs to, where the first is no part of its own; -1 for padding.

    An image without a grid has no views, and is a part as a whole.
    """
    of_label = [PARTS.index(name) if name in PARTS else -1 for name in MODALITIES]
    numbers = torch.tensor(of_label, device=modality.labels.device)[modality.labels]
    numbers.masked_fill_(modality.special, PARTS.index("special"))
    for (example, index), grid in modality.grids.items():
        is_image = modality.labels[example] == MODALITIES.index("image")
        positions = (is_image & (modality.media_index[example] == index)).nonzero()[:, 0]
        if len(positions) == len(grid):  # else incomplete in this map: its tokens cannot be distinguished
            view = grid.view.clamp(max=1).masked_fill_(grid.newline, VIEWS.index("newline"))
            numbers[example, positions] = PARTS.index(VIEWS[0]) + view.to(numbers.device, numbers.dtype)
    return numbers


def first_position(modality: ModalityMap) -> Bool[Tensor, "batch pos"]:
    """The first position of each example that is not padding."""
    attended = modality.attention_mask
    first = torch.zeros_like(attended, dtype=torch.bool)
    return first.scatter_(1, attended.argmax(dim=1, keepdim=True), attended.any(dim=1, keepdim=True))


def spread(
    kept: Float[Tensor, "batch head held 3"],
    held: Bool[Tensor, "batch held pos"],
    member: Bool[Tensor, "batch every_part pos"],
) -> Float[Tensor, "batch head every_part 3"] | None:
    """What was kept of the parts that occurred, on all of `PARTS`; None where it was kept of others."""
    is_same = (held[:, :, None] == member[:, None]).all(dim=-1).all(dim=0)  # [held part]
    occurs = member.any(dim=-1).any(dim=0)
    if not bool(is_same.any(dim=1).all()) or not bool((is_same.any(dim=0) | ~occurs).all()):
        return None
    # A part that was kept and is empty in the examples at hand has nothing to give, wherever it goes.
    spread_mass = kept.new_zeros(*kept.shape[:2], member.shape[1], 3)
    return spread_mass.index_add_(2, is_same.int().argmax(dim=1).to(kept.device), kept)


def _occurring(modality: ModalityMap) -> Bool[Tensor, "batch part pos"]:
    member = parts(modality)
    return member[:, member.any(dim=-1).any(dim=0)]


def measure(
    pattern: Float[Tensor, "batch head row key"], member: Bool[Tensor, "batch part key"]
) -> Float[Tensor, "batch head row part 3"]:
    """For each row and part: the sum of p, the sum of p log p, and the largest p."""
    belongs = member.transpose(1, 2).to(pattern.dtype)[:, None]  # [batch 1 key part]
    mass = pattern @ belongs
    information = torch.xlogy(pattern, pattern) @ belongs
    # Every key goes to the place of its part, and one of none to the place before the first.
    place = (member * torch.arange(1, member.shape[1] + 1, device=member.device)[:, None]).sum(dim=1)
    largest = pattern.new_zeros(*pattern.shape[:-1], member.shape[1] + 1)
    largest.scatter_reduce_(-1, place[:, None, None].expand(pattern.shape), pattern, "amax")
    return torch.stack([mass, information, largest[..., 1:]], dim=-1)
