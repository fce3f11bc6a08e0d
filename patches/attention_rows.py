"""HookedTransformer's attention at the speed of SDPA, with scores and patterns for chosen query rows only.

The gap: HookedTransformer makes scores and pattern of every head and every pair of positions, in the model's
dtype, whoever reads them. A prompt with an image has thousands of positions: gigabytes for each layer, several
times the time of the same model in Hugging Face, and NaN where fp16 scores overflow. Under this patch each block
computes its output with `scaled_dot_product_attention`, and scores and pattern in fp32 for the rows asked for:
`hook_attn_scores` and `hook_pattern` get `[batch head row key]`. Everything else (q, k, v, z, the residual stream)
fires as before, and is the same to rounding.

What it cannot do: the output does not come from the pattern, so a hook that edits scores or pattern would change
nothing. That is noticed, and refused.

Checked against TransformerLens 3.9, whose `AbstractAttention.forward` calls the three methods replaced here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from lensplug.patches.errors import LensplugError
from lensplug.patches.patch import Patch
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import HookedTransformer

EachBlock = Callable[[int, int, Float[Tensor, "batch head row key"]], None]
"""Called with the layer, the first query position of a block of rows, and the pattern of the block."""

BLOCK_BYTES = 2**27
"""About what a block of rows takes, in fp32, with what it is made from."""


class AttentionRows(Patch):
    """Fast attention in every block of a model; scores and patterns of chosen rows.

    with AttentionRows(model, rows):
        logits, cache = model.run_with_cache(tokens)
    cache["pattern", 0]                            # [batch head row key]
    """

    def __init__(
        self, model: HookedTransformer, rows: Int[Tensor, "batch row"], *, each_block: EachBlock | None = None
    ) -> None:
        """Prepare the patch.

        Args:
            model: The model.
            rows: For each example the query positions, from the left, whose scores and patterns are wanted; there
                may be none (`[batch 0]`).
            each_block: Shown the whole pattern of every layer, a block of rows at a time, in fp32: for sums and means
                over it, of which no more than one block is ever there. Costs about what eager attention does.

        Raises:
            LensplugError: If the model's attention has something that SDPA does not know.
        """
        super().__init__(model)
        _refuse(model.cfg)
        self._blocks = [
            _BlockRows(block.attn, rows, None if each_block is None else partial(each_block, layer))
            for layer, block in enumerate(model.blocks)
        ]

    @property
    def applied(self) -> bool:
        """Whether the changes are in force."""
        return any(block.applied for block in self._blocks)

    def apply(self) -> AttentionRows:
        """Make the changes, in every block or in none."""
        try:
            for block in self._blocks:
                block.apply()
        except BaseException:
            self.remove()
            raise
        return self

    def remove(self) -> None:
        """Put back what was there before."""
        for block in reversed(self._blocks):
            block.remove()


class _BlockRows(Patch):
    """The attention of one block.

    Its forward calls, in this order: `calculate_attention_scores` (here: of the rows), `apply_causal_mask` (here: of
    the rows; the padding is kept), the hooks, and `calculate_z_scores` (here: SDPA from the queries and keys).
    """

    def __init__(
        self, attn: Any, rows: Int[Tensor, "batch row"], each_block: Callable[[int, Tensor], None] | None
    ) -> None:
        super().__init__(attn)
        self._rows, self._each_block = rows, each_block

    def _changes(self) -> dict[str, Any]:
        return {
            "calculate_attention_scores": self._scores,
            "apply_causal_mask": self._masked,
            "calculate_z_scores": self._z,
        }

    def _scores(
        self, q: Float[Tensor, "batch pos head d_head"], k: Float[Tensor, "batch key kv_head d_head"]
    ) -> Float[Tensor, "batch head row key"]:
        if q.shape[1] != k.shape[1]:
            raise LensplugError("attention rows are not known with a key-value cache: run the prompt in one piece.")
        if len(q) != len(self._rows):
            raise LensplugError(f"rows are for {len(self._rows)} examples, the model runs on {len(q)}.")
        self._q, self._k = q.transpose(1, 2), k.transpose(1, 2)
        self._length, self._causal, self._padding = k.shape[1], False, None
        at = self._rows.to(q.device)[:, None, :, None].expand(-1, q.shape[2], -1, q.shape[3])
        return self._kept(self._scores_of(self._q.gather(2, at)))

    def _masked(
        self,
        scores: Float[Tensor, "batch head row key"],
        past_kv_pos_offset: int = 0,
        attention_mask: Int[Tensor, "batch key"] | None = None,
    ) -> Float[Tensor, "batch head row key"]:
        self._causal = True
        self._padding = None if attention_mask is None else attention_mask.bool().to(scores.device)
        return self._kept(scores.masked_fill(~self._seen(self._rows.to(scores.device)), -torch.inf))

    def _z(
        self, v: Float[Tensor, "batch key kv_head d_head"], pattern: Float[Tensor, "batch head row key"]
    ) -> Float[Tensor, "batch pos head d_head"]:
        self._refuse_edits(pattern)
        if self._each_block is not None:
            self._show_blocks(self._each_block)
        q, k, v = self._q, self._k, v.transpose(1, 2)
        del self._q, self._k, self._scores_kept
        repeats = q.shape[1] // k.shape[1]
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        scale = 1 / float(self.target.attn_scale)
        windowed = self.target.attn_type == "local" and self.target.cfg.window_size < self._length
        if self._padding is None and not windowed:
            z = F.scaled_dot_product_attention(q, k, v, is_causal=self._causal, scale=scale)
        else:
            mask = self._seen(torch.arange(self._length, device=q.device)[None])
            sees = mask.any(dim=-1, keepdim=True)  # padding sees nothing, and then gets nothing
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask | ~sees, scale=scale) * sees
        hooked: Tensor = self.target.hook_z(z.transpose(1, 2))
        return hooked

    def _scores_of(self, q: Float[Tensor, "batch head row d_head"]) -> Float[Tensor, "batch head row key"]:
        """In fp32. Query heads of a group share their keys: one product for each group, and no copy of the keys."""
        batch, heads, n_rows, d_head = q.shape
        groups, keys = self._k.shape[1:3]
        grouped = q.float().reshape(batch, groups, heads // groups * n_rows, d_head)
        scores = grouped @ self._k.float().transpose(2, 3) / self.target.attn_scale
        return scores.reshape(batch, heads, n_rows, keys)

    def _seen(self, rows: Int[Tensor, "rows_of row"]) -> Bool[Tensor, "example 1 row key"]:
        """What queries at these positions see: causal, in the block's window, no padding."""
        keys = torch.arange(self._length, device=rows.device)
        at = rows[:, :, None]
        seen = keys <= at if self._causal else torch.ones_like(keys <= at)
        if self._causal and self.target.attn_type == "local":
            seen = seen & (keys > at - self.target.cfg.window_size)
        if self._padding is not None:
            seen = seen & self._padding[:, None]
        return seen[:, None]

    def _show_blocks(self, each_block: Callable[[int, Tensor], None]) -> None:
        batch, heads = self._q.shape[:2]
        size = max(1, BLOCK_BYTES // (batch * heads * self._length * 4 * 3))
        for start in range(0, self._length, size):
            scores = self._scores_of(self._q[:, :, start : start + size])
            rows = torch.arange(start, start + scores.shape[2], device=scores.device)[None]
            scores.masked_fill_(~self._seen(rows), -torch.inf)
            each_block(start, scores.softmax(dim=-1).nan_to_num_(0.0))

    def _kept(self, scores: Tensor) -> Tensor:
        self._scores_kept = scores.clone()  # hooks may write into what they get
        return scores

    def _refuse_edits(self, pattern: Tensor) -> None:
        expected = self._scores_kept.softmax(dim=-1).nan_to_num(0.0).to(pattern.dtype)
        if not torch.equal(expected, pattern):
            raise LensplugError(
                "a hook edits attention scores or patterns, and with chosen rows the output does not come from them:"
                " run without query_positions (without AttentionRows)."
            )


def _refuse(cfg: Any) -> None:
    unknown = {
        "positions of the kind " + repr(cfg.positional_embedding_type): cfg.positional_embedding_type
        in ("alibi", "relative_positional_bias"),
        "attention sinks": getattr(cfg, "use_attention_sinks", False),
        "a soft cap on scores": cfg.attn_scores_soft_cap > 0,
    }
    for what, there in unknown.items():
        if there:
            raise LensplugError(f"the model's attention has {what}, which AttentionRows does not know.")
