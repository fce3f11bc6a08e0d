"""Ways to take a modality away from what the language core receives: positions of merged embeddings replaced.

Each takes the embeddings of a batch and the positions to ablate, and gives embeddings and mask to run.
`remove` shortens the prompt; the others keep every position where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class EmbeddingStatistics:
    """Mean and standard deviation, dimension by dimension, of the embeddings at chosen positions, batch by batch."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, embeds: Float[Tensor, "batch pos d_model"], chosen: Bool[Tensor, "batch pos"]) -> None:
        """Take in a batch; sums in double precision."""
        own = embeds[chosen].double().cpu()
        self.count += len(own)
        self.total = self.total + own.sum(dim=0)
        self.squares = self.squares + own.square().sum(dim=0)

    @property
    def mean(self) -> Float[Tensor, " d_model"]:
        """Of all positions taken in."""
        return self.total / max(self.count, 1)

    @property
    def standard_deviation(self) -> Float[Tensor, " d_model"]:
        """Of all positions taken in."""
        return (self.squares / max(self.count, 1) - self.mean.square()).clamp(min=0).sqrt()


@dataclass(frozen=True)
class Ablation:
    """What a method may read."""

    embeds: Float[Tensor, "batch pos d_model"]
    attention_mask: Int[Tensor, "batch pos"]
    chosen: Bool[Tensor, "batch pos"]
    """The positions to take away."""
    statistics: EmbeddingStatistics
    """Of the modality that they belong to, over all examples."""
    generator: torch.Generator


Ablated = tuple[Float[Tensor, "batch short d_model"], Int[Tensor, "batch short"]]


def remove(given: Ablation) -> Ablated:
    """Without these positions; the rest moves together, padded on the left."""
    kept = given.attention_mask.bool() & ~given.chosen
    # A stable sort by "kept" puts what is left out first, which is then padding.
    order = kept.long().argsort(dim=1, stable=True)
    embeds = given.embeds.gather(1, order[..., None].expand_as(given.embeds))
    longest = int(kept.sum(dim=1).max())
    return embeds[:, -longest:], kept.long().gather(1, order)[:, -longest:]


def zero(given: Ablation) -> Ablated:
    """Zero vectors."""
    return given.embeds.masked_fill(given.chosen[..., None], 0), given.attention_mask


def mean(given: Ablation) -> Ablated:
    """The mean vector of the modality over all examples."""
    vector = given.statistics.mean.to(given.embeds)
    return torch.where(given.chosen[..., None], vector, given.embeds), given.attention_mask


def noise(given: Ablation) -> Ablated:
    """Gaussian noise with the modality's mean and standard deviation in each dimension."""
    drawn = torch.randn(given.embeds.shape, generator=given.generator, dtype=torch.float64)
    vectors = given.statistics.mean + given.statistics.standard_deviation * drawn
    return torch.where(given.chosen[..., None], vectors.to(given.embeds), given.embeds), given.attention_mask


METHODS: dict[str, Callable[[Ablation], Ablated]] = {"remove": remove, "zero": zero, "mean": mean, "noise": noise}
NEED_STATISTICS = ("mean", "noise")
