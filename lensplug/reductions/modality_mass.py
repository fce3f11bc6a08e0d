"""How much of each query's attention falls on each modality, in every head: what head specialisation reads.

Three sums for each part of the prompt: the mass, the sum of p log p, and the largest weight. The first position that
is not padding, where many heads rest, is a part of its own; so are the other special tokens, and the views of an image
(whole, tiles, newlines). Which of them make a class can be said afterwards: sums of parts are sums of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
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
    first = first_position(modality) if sink is None else sink
    numbers = torch.arange(len(MODALITIES), device=modality.labels.device)
    by_name: dict[str, Tensor] = dict(
        zip(MODALITIES, (modality.labels[:, None] == numbers[:, None]).unbind(1), strict=True)
    )
    views = torch.stack(views_of(modality), dim=1)
    by_name |= zip(VIEWS, views.unbind(1), strict=True)
    by_name |= {
        "special": modality.special,
        "text": by_name["text"] & ~modality.special,
        "image": by_name["image"] & ~views.any(dim=1),
    }
    masks = torch.stack([by_name[name] for name in PARTS[1:]], dim=1)
    return torch.cat([first[:, None], masks & ~first[:, None]], dim=1)


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


def views_of(modality: ModalityMap) -> list[Bool[Tensor, "batch pos"]]:
    """Where each of `VIEWS` is; an image without a grid is in none."""
    masks = [torch.zeros_like(modality.special) for _ in VIEWS]
    for (example, index), grid in modality.grids.items():
        is_image = modality.labels[example] == MODALITIES.index("image")
        positions = (is_image & (modality.media_index[example] == index)).nonzero()[:, 0]
        if len(positions) != len(grid):
            continue  # incomplete in this map: its tokens cannot be distinguished
        view, newline = grid.view.to(positions.device), grid.newline.to(positions.device)
        for where, chosen in zip(masks, ((view == 0) & ~newline, (view > 0) & ~newline, newline), strict=True):
            where[example, positions[chosen]] = True
    return masks


def measure(
    pattern: Float[Tensor, "batch head row key"], member: Bool[Tensor, "batch part key"]
) -> Float[Tensor, "batch head row part 3"]:
    """For each row and part: the sum of p, the sum of p log p, and the largest p."""
    belongs = member.transpose(1, 2).to(pattern.dtype)[:, None]  # [batch 1 key part]
    mass = pattern @ belongs
    information = torch.xlogy(pattern, pattern) @ belongs
    largest = torch.zeros_like(mass)
    for part in member.any(dim=-1).any(dim=0).nonzero()[:, 0].tolist():
        largest[..., part] = (pattern * member[:, None, None, part]).amax(dim=-1)
    return torch.stack([mass, information, largest], dim=-1)
