"""The gap: HookedTransformer's full patterns know no attention knockout but a hook on scores.

Such a hook makes every pass compute all scores, and is lost where SDPA computes attention. Under this patch the scores
of `unseen_keys` are minus infinity before `hook_attn_scores` fires, as those of later positions are.

Checked against transformer-lens 3.9.0, `AbstractAttention.apply_causal_mask`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.patches.patch import Patch, PatchOfParts
from lensplug.patches.unseen_keys import hidden_from, unseen_keys


class KnockedOutScores(PatchOfParts):
    """While applied, full patterns of a HookedTransformer leave out the keys that a block's queries do not see."""

    def __init__(self, model: Any) -> None:
        """Keep `model`; nothing is changed before `apply`."""
        super().__init__(model, [_Scores(block.attn) for block in model.blocks])


class _Scores(Patch):
    relies_on = ("apply_causal_mask",)

    def _changes(self) -> dict[str, Any]:
        self._apply_causal_mask = self.target.apply_causal_mask
        return {"apply_causal_mask": self.masked}

    def masked(
        self, attn_scores: Float[Tensor, "batch head query key"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "batch head query key"]:
        """The scores as ever, and minus infinity at keys that are not seen."""
        scores: Tensor = self._apply_causal_mask(attn_scores, *args, **kwargs)
        unseen = unseen_keys(self.target)
        if not unseen:
            return scores
        queries, keys = scores.shape[-2:]
        rows = torch.arange(keys - queries, keys, device=scores.device)[None]
        return scores.masked_fill(hidden_from(unseen, rows, keys), -torch.inf)
