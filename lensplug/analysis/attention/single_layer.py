"""One layer's attention as one matrix: a head, the mean of some, or of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, SupportsIndex

from jaxtyping import Float
from torch import Tensor

from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import layer_index, read_head_mean, read_pattern
from lensplug.errors import LensplugError
from lensplug.validation.arguments import whole_number

Head = Literal["mean"] | SupportsIndex | Sequence[SupportsIndex]
""" "mean" over all heads, one head, or several to average."""


@dataclass(frozen=True)
class OneLayer:
    """What was asked for, checked, and its attention."""

    attention: Float[Tensor, "batch query key"]
    layer: int
    head: str
    """ "mean", or the heads that were averaged, counted from 0."""
    in_words: str


def read_layer(cache: ActivationCache, layer: int, head: Head, *, needed_by: str) -> OneLayer:
    """The attention of one layer, negative ones counted from the last.

    Raises:
        LensplugError: If there is no such layer or head, or the pattern is missing.
    """
    layer = layer_index(cache, layer)
    if isinstance(head, str):
        fused = read_head_mean(cache, layer, needed_by=needed_by)
        return OneLayer(fused, layer, "mean", f"layer {layer}, mean of all heads")
    pattern = read_pattern(cache, layer, needed_by=needed_by)
    heads = _heads(head, pattern.shape[1])
    words = f"head {heads[0]}" if len(heads) == 1 else f"mean of heads {' and '.join(map(str, heads))}"
    return OneLayer(pattern[:, heads].mean(dim=1), layer, ", ".join(map(str, heads)), f"layer {layer}, {words}")


def _heads(head: SupportsIndex | Sequence[SupportsIndex], n_heads: int) -> list[int]:
    """The heads that are meant, counted from 0."""
    several = head.tolist() if isinstance(head, Tensor) and head.ndim == 1 else head
    chosen = [
        whole_number(head_index, "head") for head_index in (several if isinstance(several, Sequence) else [several])
    ]
    if not chosen or not all(-n_heads <= head_index < n_heads for head_index in chosen):
        raise LensplugError(f"head is {head}, the model has heads 0 to {n_heads - 1}.")
    return [head_index % n_heads for head_index in chosen]
