"""TransformerLens's ActivationCache as analyses read it, without importing TransformerLens (which takes seconds)."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ActivationCache(Protocol):
    """Activations of one run by the names of their hooks: TransformerLens's own class, and `LensCache`, are such."""

    cache_dict: dict[str, Tensor]
    model: Any
    has_batch_dim: bool

    def __getitem__(self, key: Any) -> Tensor:
        """The activation of a hook, by its name or TransformerLens's short form of it."""
        ...
