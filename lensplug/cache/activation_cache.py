"""TransformerLens's ActivationCache as analyses read it, without importing TransformerLens (which takes seconds)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ActivationCache(Protocol):
    """Activations of one run by the names of their hooks: TransformerLens's own class, and `LensCache`, are such."""

    cache_dict: dict[str, Tensor]
    model: Any
    has_batch_dim: bool

    def __getitem__(self, key: Any) -> Tensor:
        """The activation of a hook, by its name or TransformerLens's short form of it."""

    def keys(self) -> Iterable[str]:
        """The names of the hooks."""

    def values(self) -> Iterable[Tensor]:
        """The activations."""


Knowledge = Literal[
    "attention_mask",
    "str_tokens",
    "query_positions",
    "residual_positions",
    "modality_parts",
    "rollout_mixing",
    "received_times",
    "weights",
    "interventions",
    "unseen",
]
"""Attributes of a `LensCache` besides its activations; documented there."""


def known(cache: ActivationCache | None, what: Knowledge) -> Any:
    """What a cache knows besides its activations; None where TransformerLens made it alone."""
    return getattr(cache, what, None)
