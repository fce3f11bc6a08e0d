"""HookedTransformer's attention at the speed of SDPA, with scores and patterns for chosen query rows only.

The gap: HookedTransformer makes scores and pattern of every head and every pair of positions, in the model's
dtype, whether or not they are read. A prompt with an image has thousands of positions: gigabytes for each layer,
several times the time of the same model in Hugging Face, and NaN where fp16 scores overflow. Under this patch each
block computes its output with `scaled_dot_product_attention`, and scores and pattern in fp32 for the rows asked for:
`hook_attn_scores` and `hook_pattern` get `[batch head row key]`. Everything else (q, k, v, z, the residual stream)
fires as before, and is the same to rounding.

What it cannot do: the output does not come from the pattern, so a hook that edits scores or pattern would change
nothing. That is noticed, and refused.

Checked against TransformerLens 3.9, whose `AbstractAttention.forward` calls the three methods replaced here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.patches.errors import LensplugError
from lensplug.patches.hook_points import seen
from lensplug.patches.pattern_blocks import PatternBlocks, refuse_edits
from lensplug.patches.rows_of_blocks import RowsOfABlock, RowsOfBlocks
from lensplug.patches.unseen_keys import unseen_keys


class AttentionRows(RowsOfBlocks):
    """Fast attention in every block of a model; scores and patterns of chosen rows.

    with AttentionRows(model, rows):
        logits, cache = model.run_with_cache(tokens)
    cache["pattern", 0]                            # [batch head row key]
    """

    def _of_block(self, attn: Any, *given: Any) -> RowsOfABlock:
        _refuse(attn.cfg)
        return _BlockRows(attn, *given)


class _BlockRows(RowsOfABlock):
    """The attention of one block.

    Its forward calls, in this order: `calculate_attention_scores` (here: of the rows), `apply_causal_mask` (here: of
    the rows; the padding is kept), the hooks, and `calculate_z_scores` (here: SDPA from the queries and keys).
    """

    relies_on = ("calculate_attention_scores", "apply_causal_mask", "calculate_z_scores")

    def _changes(self) -> dict[str, Any]:
        return {
            "calculate_attention_scores": self._noted_scores,
            "apply_causal_mask": self._noted_masked,
            "calculate_z_scores": self._z,
        }

    def attended(
        self,
        q: Float[Tensor, "batch pos head d_head"],
        k: Float[Tensor, "batch key kv_head d_head"],
        v: Float[Tensor, "batch key kv_head d_head"],
        attention_mask: Int[Tensor, "batch key"] | None,
    ) -> Float[Tensor, "batch pos head d_head"]:
        """All of it, as the forward calls it."""
        scores = self._masked(self._scores(q, k), 0, attention_mask)
        if self._chosen:
            self._shown(scores)
        else:
            seen(self.target.hook_pattern, seen(self.target.hook_attn_scores, scores))
        return self._output(v)

    def _scores(
        self, q: Float[Tensor, "batch pos head d_head"], k: Float[Tensor, "batch key kv_head d_head"]
    ) -> Float[Tensor, "batch head row key"]:
        self._refuse_other(q.shape[1], k.shape[1], len(q))
        window = self.target.cfg.window_size if self.target.attn_type == "local" else None
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        self._pattern = PatternBlocks(q, k, float(self.target.attn_scale), window, unseen=unseen_keys(self.target))
        if not self._chosen:  # no time spent on what is empty
            return q.new_zeros(len(q), q.shape[1], 0, k.shape[2], dtype=torch.float32)
        return self._chosen.scores(self._pattern)

    def _masked(
        self,
        scores: Float[Tensor, "batch head row key"],
        past_kv_pos_offset: int = 0,
        attention_mask: Int[Tensor, "batch key"] | None = None,
    ) -> Float[Tensor, "batch head row key"]:
        masks = [attention_mask, self._visible(self._pattern.length)]
        visible_masks = [mask.bool().to(scores.device) for mask in masks if mask is not None]
        padding = torch.stack(visible_masks).all(dim=0) if visible_masks else None
        self._pattern = replace(self._pattern, causal=True, padding=padding)
        return self._chosen.masked(scores, self._pattern) if self._chosen else scores

    def _z(
        self, v: Float[Tensor, "batch key kv_head d_head"], pattern: Float[Tensor, "batch head row key"]
    ) -> Float[Tensor, "batch pos head d_head"]:
        if self._chosen:
            refuse_edits(pattern, self._scores_noted.softmax(dim=-1).nan_to_num(0.0))
            del self._scores_noted
        return self._output(v)

    def _output(self, v: Float[Tensor, "batch key kv_head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        of_rows, v = self._pattern, v.transpose(1, 2)
        del self._pattern
        if self._each_block is not None:
            for start, block in of_rows:
                self._each_block(start, block)
        z = of_rows.attend(v) if self._each_gradient is None else of_rows.attend_and_show(v, self._each_gradient)
        return seen(self.target.hook_z, z.transpose(1, 2))

    def _noted_scores(self, *q_and_k: Tensor) -> Float[Tensor, "batch head row key"]:
        return self._noted(self._scores(*q_and_k))

    def _noted_masked(self, *scores_and_mask: Any) -> Float[Tensor, "batch head row key"]:
        return self._noted(self._masked(*scores_and_mask))

    def _noted(self, scores: Tensor) -> Tensor:
        """What the forward goes on with: `_z` looks whether a hook has edited it."""
        self._scores_noted = scores.clone()  # hooks may write into what they get
        return scores


def _refuse(cfg: Any) -> None:
    unknown = {
        "positions of the kind " + repr(cfg.positional_embedding_type): cfg.positional_embedding_type
        in ("alibi", "relative_positional_bias"),
        "attention sinks": getattr(cfg, "use_attention_sinks", False),
        "a soft cap on scores": cfg.attn_scores_soft_cap > 0,
    }
    for feature, is_present in unknown.items():
        if is_present:
            raise LensplugError(f"the model's attention has {feature}, which AttentionRows does not know.")
