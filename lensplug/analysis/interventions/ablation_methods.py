"""Ways to take a modality away from what the language core receives: positions of merged embeddings replaced.

Each takes the inputs of a batch and the positions to ablate, and gives what to run. `remove` shortens the prompt; the
others keep every position where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensplug.analysis.protocols import Lens
from lensplug.inputs.edited_inputs import Variant, in_place
from lensplug.inputs.multimodal_input import MultimodalInput


@dataclass
class EmbeddingStatistics:
    """Mean and standard deviation, dimension by dimension, of the embeddings at chosen positions, batch by batch."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, embeds: Float[Tensor, "batch pos d_model"], chosen: Bool[Tensor, "batch pos"]) -> None:
        """Take in a batch; sums in double precision."""
        vectors = embeds[chosen].double().cpu()
        self.count += len(vectors)
        self.total = self.total + vectors.sum(dim=0)
        self.squares = self.squares + vectors.square().sum(dim=0)

    @property
    def mean(self) -> Float[Tensor, " d_model"]:
        """Mean over all positions seen."""
        return self.total / max(self.count, 1)

    @property
    def standard_deviation(self) -> Float[Tensor, " d_model"]:
        """Standard deviation over all positions seen."""
        return (self.squares / max(self.count, 1) - self.mean.square()).clamp(min=0).sqrt()


@dataclass(frozen=True)
class Ablation:
    """What a method may read."""

    lens: Lens
    inputs: MultimodalInput
    chosen: Bool[Tensor, "batch pos"]
    """The positions to take away."""
    statistics: EmbeddingStatistics
    """Embedding statistics of their modality, over all examples."""
    generator: torch.Generator


def remove(given: Ablation) -> Variant:
    """Without these positions; the rest moves together, padded on the left."""
    shorter: Variant = given.lens.without(given.inputs, given.chosen)
    return shorter


def zero(given: Ablation) -> Variant:
    """Zero vectors."""
    return _replaced(given, torch.zeros(()))


def mean(given: Ablation) -> Variant:
    """The mean vector of the modality over all examples."""
    return _replaced(given, given.statistics.mean)


def noise(given: Ablation) -> Variant:
    """Gaussian noise with the modality's mean and standard deviation in each dimension."""
    standard_normal = torch.randn(given.inputs.embeds.shape, generator=given.generator, dtype=torch.float64)
    return _replaced(given, given.statistics.mean + given.statistics.standard_deviation * standard_normal)


def _replaced(ablation: Ablation, vectors: Tensor) -> Variant:
    embeds = ablation.inputs.embeds
    return in_place(ablation.inputs, torch.where(ablation.chosen[..., None], vectors.to(embeds), embeds))


EmbeddingMethod = Literal["remove", "zero", "mean", "noise"]
METHODS: dict[EmbeddingMethod, Callable[[Ablation], Variant]] = {
    "remove": remove,
    "zero": zero,
    "mean": mean,
    "noise": noise,
}
NEED_STATISTICS = ("mean", "noise")
