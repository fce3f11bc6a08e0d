"""The gap: a TransformerBridge shows an embedding without the number that its decoder multiplies it by.

Granite multiplies embeddings as they enter the stream (`embedding_multiplier`): before that, `hook_embed` does not sum
with what the blocks add. Here it is what enters the stream, and an edit of it is an edit of that.

Checked against transformer-lens 3.9.0 and 4.3.0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import EmbeddingBridge

from lensplug.patches.hook_points import has_hooks


class ScaledEmbedding(EmbeddingBridge):  # type: ignore[misc]
    """An embedding whose hook shows it multiplied, as the decoder does with it next."""

    def __init__(self, name: str, scale: float) -> None:
        """Of the module of that name."""
        super().__init__(name=name)
        self.hook_out = _ScaledPoint(scale)


class _ScaledPoint(HookPoint):  # type: ignore[misc]
    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale

    def __call__(self, embeds: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not has_hooks(self):
            return embeds
        scaled = embeds * self._scale
        hooked: Tensor = super().__call__(scaled, *args, **kwargs)
        # Read only: the embeddings themselves, which dividing would round.
        return (
            embeds if not hooked.requires_grad and torch.equal(hooked, embeds * self._scale) else hooked / self._scale
        )
