"""The gap: a TransformerBridge forgets the prompt when it generates.

transformers has renamed what an attention layer is given: `cache`, before `past_key_values`. The bridge's attention
looks for the old name, keeps no keys and values, and each new word attends to itself alone: other words, no error.
Under this patch it finds either.

Checked against transformer-lens 3.9.0 and 4.3.0 with transformers 5.24.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lensplug.patches.modules import attentions
from lensplug.patches.patch import Patch, PatchOfParts


class BridgeCache(PatchOfParts):
    """While applied, a bridge's attention finds its key-value cache under the name that transformers gives it."""

    def __init__(self, model: Any) -> None:
        """Keep `model`, a TransformerBridge; nothing is changed before `apply`."""
        super().__init__(model, [_Attention(attn) for attn in attentions(model)])


class _Attention(Patch):
    relies_on = ("_update_kv_cache",)

    def _changes(self) -> dict[str, Any]:
        self._update = self.target._update_kv_cache
        return {"_update_kv_cache": self._update_kv_cache}

    def _update_kv_cache(self, k: Tensor, v: Tensor, *, cache: Any = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if cache is not None:
            kwargs["past_key_values"] = cache
        updated: tuple[Tensor, Tensor] = self._update(k, v, **kwargs)
        return updated
