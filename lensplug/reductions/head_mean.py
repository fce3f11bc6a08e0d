"""The mean of each layer's patterns over its heads: what rollout and received attention read of all rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.reductions import names as hook_names


@dataclass(frozen=True)
class HeadMean:
    """Keep `[batch query key]` of every layer, or of some, in fp32."""

    layers: Collection[int] | None = None

    def begin(self, inputs: MultimodalInput, layers: int, heads: int) -> _Means:
        """Empty, for one run."""
        if bad := [layer for layer in self.layers or () if not 0 <= layer < layers]:
            raise LensplugError(f"HeadMean has layer {bad[0]}, the model has layers 0 to {layers - 1}.")
        return _Means(self.layers, inputs.tokens.shape[1])

    def numbers(self, inputs: MultimodalInput, layers: int, heads: int) -> int:
        """How many numbers will be kept."""
        batch, length = inputs.tokens.shape
        return (layers if self.layers is None else len(self.layers)) * batch * length**2


@dataclass
class _Means:
    layers: Collection[int] | None
    length: int
    named: dict[str, Float[Tensor, "batch query key"]] = field(default_factory=dict)
    noted: dict[str, Any] = field(default_factory=dict)

    def __call__(self, layer: int, start: int, pattern: Float[Tensor, "batch head row key"]) -> None:
        if self.layers is not None and layer not in self.layers:
            return
        name = hook_names.head_mean(layer)
        if name not in self.named:
            self.named[name] = pattern.new_zeros(len(pattern), self.length, self.length)
        rows, keys = pattern.shape[2:]
        self.named[name][:, start : start + rows, :keys] = pattern.mean(dim=1)
