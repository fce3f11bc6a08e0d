"""The gap: in a TransformerBridge padding attends evenly to everything, later positions among it.

What a query does not see has the score -3.4e38 there, so that a query that sees nothing (padding at the left) has a row
of equal weights. Under this patch it has the row of HookedTransformer: scores of -inf, a pattern of zeros. A score that
overflowed in fp16 stays NaN, so that it is noticed.

Checked against transformer-lens 3.9.0 and 4.3.0, whose attention calls the two methods replaced here before and after
its softmax.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensplug.patches.modules import attentions
from lensplug.patches.patch import Patch, PatchOfParts
from lensplug.patches.unseen_keys import hidden_from, unseen_keys


class BridgePadding(PatchOfParts):
    """While applied, patterns of a bridge are zero where HookedTransformer's are."""

    def __init__(self, model: Any) -> None:
        """Keep `model`, a TransformerBridge; nothing is changed before `apply`."""
        super().__init__(model, [_Padding(attn) for attn in attentions(model)])


class _Padding(Patch):
    relies_on = ("_apply_reconstruct_attention_mask", "_scrub_compatibility_pattern_nans")

    def _changes(self) -> dict[str, Any]:
        return {
            "_apply_reconstruct_attention_mask": self._masked,
            "_scrub_compatibility_pattern_nans": self._without_blind_rows,
        }

    def _masked(
        self,
        attn_scores: Float[Tensor, "batch head query key"],
        attention_mask: Tensor | None,
        seq_len: int,
        q_seq_len: int | None = None,
    ) -> Float[Tensor, "batch head query key"]:
        queries = seq_len if q_seq_len is None else q_seq_len
        is_visible = seen_by(attention_mask, queries, seq_len, attn_scores.device, causal=is_causal(self.target))
        if attention_mask is not None and attention_mask.is_floating_point():
            attn_scores = attn_scores + attention_mask.to(attn_scores.dtype)  # it may say more than who sees whom
        if unseen := unseen_keys(self.target):
            rows = torch.arange(seq_len - queries, seq_len, device=attn_scores.device)[None]
            is_visible = is_visible & ~hidden_from(unseen, rows, seq_len)
        self._blind = ~is_visible.any(dim=-1, keepdim=True)
        return attn_scores.masked_fill(~is_visible, -torch.inf)

    def _without_blind_rows(
        self, pattern: Float[Tensor, "batch head query key"]
    ) -> Float[Tensor, "batch head query key"]:
        blind = self._blind
        del self._blind
        return pattern.masked_fill(blind, 0.0) if bool(blind.any()) else pattern


def is_causal(attn: Any) -> bool:
    """What no mask says to a block's attention: plainly causal, or (PaliGemma) that everything is seen."""
    return bool(getattr(attn.original_component, "is_causal", True))


def seen_by(
    attention_mask: Tensor | None, queries: int, keys: int, device: torch.device, *, causal: bool = True
) -> Bool[Tensor, "example 1 query key"]:
    """Which keys each query sees, by the mask that Hugging Face gives an attention layer; `causal` where it is None."""
    if attention_mask is None:
        everything = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        return everything.tril(diagonal=keys - queries) if causal else everything
    is_visible = attention_mask[..., :keys]
    if is_visible.dtype != torch.bool:
        is_visible = is_visible > torch.finfo(is_visible.dtype).min / 2
    return is_visible.to(device)
