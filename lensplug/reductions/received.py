"""What each key receives from later queries, head by head: how sinks are found where patterns are too large to keep.

A key that is looked at from everywhere gets many times its even share from most of the queries that come after it. The
even share of a query is 1 / n, with n the positions up to it that are not padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.reductions import names as hook_names

TIMES = 20.0
"""Even shares, usually. Gu et al. 2025 (arXiv 2410.10781) ask for a mean weight of 0.3 in prompts of 64 tokens, 19 even
shares."""


@dataclass(frozen=True)
class Received:
    """Keep `[batch head key measure]` of every layer, in fp32: see `measure`."""

    times: float = TIMES
    """A query looks at a key if it gives it more than so many times its even share."""

    def __post_init__(self) -> None:
        """Refuse what is no multiple."""
        if not (math.isfinite(self.times) and self.times > 0):
            raise LensplugError(f"times is {self.times}, expected a number above 0.")

    def begin(self, inputs: MultimodalInput, layers: int, heads: int) -> _Received:
        """Empty, for one run."""
        return _Received(self.times, inputs.attention_mask)

    def numbers(self, inputs: MultimodalInput, layers: int, heads: int) -> int:
        """How many numbers will be kept."""
        return layers * heads * inputs.tokens.numel() * 2


@dataclass
class _Received:
    times: float
    mask: Int[Tensor, "batch pos"]
    named: dict[str, Float[Tensor, "batch head key 2"]] = field(default_factory=dict)

    @property
    def noted(self) -> dict[str, Any]:
        """What it takes for a query to look at a key."""
        return {"received_times": self.times}

    def __call__(self, layer: int, start: int, pattern: Float[Tensor, "batch head row key"]) -> None:
        name = hook_names.received(layer)
        batch, heads, _, keys = pattern.shape
        if name not in self.named:
            self.named[name] = pattern.new_zeros(batch, heads, self.mask.shape[1], 2)
        self.named[name][:, :, :keys] += measure(pattern, self.mask, start, self.times)


def measure(
    pattern: Float[Tensor, "batch head row key"],
    mask: Int[Tensor, "batch pos"],
    start: int,
    times: float,
    *,
    causal: bool = True,
) -> Float[Tensor, "batch head key 2"]:
    """Of some rows, for each key: the sum of the weights that other queries give it, and how many look at it.

    Args:
        pattern: Rows of attention.
        mask: 1 where there is no padding.
        start: The first of the rows.
        times: A query looks at a key if it gives it more than so many times its even share.
        causal: Whether queries see what comes before them alone, and later ones are those that count; else all others.
    """
    rows, keys = pattern.shape[2:]
    real = mask.to(pattern.device).bool()
    at = torch.arange(start, start + rows, device=pattern.device)[:, None]
    key = torch.arange(keys, device=pattern.device)
    counts = (at > key if causal else at != key) & real[:, start : start + rows, None]  # [batch row key]
    in_sight = real.long().cumsum(dim=1)[:, start : start + rows] if causal else real.sum(dim=1, keepdim=True)
    least = times / in_sight.clamp(min=1).to(pattern.dtype)
    counted = pattern * counts[:, None]
    looks = (counted > least[:, None, :, None]).to(pattern.dtype)
    return torch.stack([counted.sum(dim=2), looks.sum(dim=2)], dim=-1)


def later_queries(mask: Int[Tensor, "batch pos"], *, causal: bool = True) -> Int[Tensor, "batch pos"]:
    """How many queries count for each key."""
    real = mask.long()
    count: Tensor = real.sum(dim=1, keepdim=True) - (real.cumsum(dim=1) if causal else real)
    return count
