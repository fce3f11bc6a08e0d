"""How much of each query's attention falls on each modality, in every head: what head specialisation reads.

Three sums for each part of the prompt: the mass, the sum of p log p, and the largest weight. The first position that
is not padding, where many heads rest, is a part of its own, so that it can be counted with its modality or left out
afterwards: sums of parts are sums of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensplug import hook_names
from lensplug.inputs import MultimodalInput
from lensplug.modality import MODALITIES, ModalityMap

PARTS = ("first", *(name for name in MODALITIES if name != "pad"))
"""The first position, then the rest of each modality; one that does not occur is empty."""


@dataclass(frozen=True)
class ModalityMass:
    """Keep `[batch head query part measure]` of every layer, in fp32; parts are `PARTS`."""

    def begin(self, inputs: MultimodalInput, layers: int, heads: int) -> _Masses:
        """Empty, for one run."""
        return _Masses(parts(inputs.modality))

    def numbers(self, inputs: MultimodalInput, layers: int, heads: int) -> int:
        """How many numbers will be kept."""
        return layers * heads * inputs.tokens.numel() * len(PARTS) * 3


@dataclass
class _Masses:
    member: Bool[Tensor, "batch part pos"]
    named: dict[str, Float[Tensor, "batch head query part 3"]] = field(default_factory=dict)

    @property
    def noted(self) -> dict[str, Any]:
        """Of which map the parts are."""
        return {"modality_parts": self.member}

    def __call__(self, layer: int, start: int, pattern: Float[Tensor, "batch head row key"]) -> None:
        name = hook_names.modality_mass(layer)
        batch, heads, rows, keys = pattern.shape
        if name not in self.named:
            self.named[name] = pattern.new_zeros(batch, heads, self.member.shape[-1], len(PARTS), 3)
        self.named[name][:, :, start : start + rows] = measure(pattern, self.member[..., :keys].to(pattern.device))


def parts(modality: ModalityMap) -> Bool[Tensor, "batch part pos"]:
    """Which position belongs to which of `PARTS`; padding to none."""
    attended = modality.attention_mask
    first = torch.zeros_like(attended, dtype=torch.bool)
    first.scatter_(1, attended.argmax(dim=1, keepdim=True), attended.any(dim=1, keepdim=True))
    return torch.stack([first, *(modality.mask(name) & ~first for name in PARTS[1:])], dim=1)


def measure(
    pattern: Float[Tensor, "batch head row key"], member: Bool[Tensor, "batch part key"]
) -> Float[Tensor, "batch head row part 3"]:
    """Of each row, in each part: the sum of p, the sum of p log p, and the largest p."""
    belongs = member.transpose(1, 2).to(pattern.dtype)[:, None]  # [batch 1 key part]
    mass = pattern @ belongs
    information = torch.xlogy(pattern, pattern) @ belongs
    largest = torch.zeros_like(mass)
    for part in range(member.shape[1]):
        if bool(member[:, part].any()):
            largest[..., part] = (pattern * member[:, None, None, part]).amax(dim=-1)
    return torch.stack([mass, information, largest], dim=-1)
