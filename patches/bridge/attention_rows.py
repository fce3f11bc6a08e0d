"""A bridge's attention at the speed of SDPA, with scores and patterns for chosen query rows only.

The gap is that of HookedTransformer (see `attention_rows`): the bridge makes scores and pattern of every head and every
pair of positions, in the model's dtype. Under this patch each block computes its output with
`scaled_dot_product_attention`, and scores and pattern in fp32 for the rows asked for. Every other hook fires as before.
A hook that edits scores or pattern would change nothing: that is noticed, and refused.

Checked against transformer-lens 3.9.0 and 4.3.0, `PositionEmbeddingsAttentionBridge.forward`, which is replaced here
for attention of the plain kind: rotary positions over the whole head, shared key heads, norms of queries and keys.
"""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lensplug.patches.bridge.attention_interface import InterfaceAttention
from lensplug.patches.bridge.padding import is_causal, seen_by
from lensplug.patches.errors import LensplugError
from lensplug.patches.hook_points import seen
from lensplug.patches.later_positions import Cut
from lensplug.patches.pattern_blocks import PatternBlocks
from lensplug.patches.rows_of_blocks import RowsOfABlock, RowsOfBlocks
from lensplug.patches.unseen_keys import unseen_keys

INPUT_FORKS = ("use_split_qkv_input", "use_attn_in", "use_attn_result")
"""Settings of a bridge under which attention is computed head by head."""
CACHES = ("cache", "past_key_values")
"""What transformers calls, and called, the key-value cache that it gives an attention layer."""


class BridgeAttentionRows(RowsOfBlocks):
    """Fast attention in every block of a bridge; scores and patterns of chosen rows.

    with BridgeAttentionRows(bridge, rows):
        logits, cache = bridge.run_with_cache(tokens)
    cache["pattern", 0]                            # [batch head row key]
    """

    def _of_block(self, attn: Any, *given: Any) -> RowsOfABlock:
        if isinstance(attn, InterfaceAttention):
            _refuse_extras(attn)
            return _InterfaceRows(attn, *given)
        block = _BlockRows(attn, *given)  # first: it says where a bridge has changed inside
        _refuse(attn)
        return block


class _BlockRows(RowsOfABlock):
    """The attention of one block."""

    relies_on: ClassVar[tuple[str, ...]] = ("_apply_position_embedding_hooks", "_qk_norm_phase", "_update_kv_cache")

    def _changes(self) -> dict[str, Any]:
        return {"forward": self.forward}

    def forward(
        self,
        hidden_states: Float[Tensor, "batch pos d_model"],
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "batch pos d_model"], None]:
        """The bridge's attention, hook by hook; the output from SDPA."""
        attn = self.target
        x = attn.hook_in(hidden_states)
        heads = (*x.shape[:2], -1, attn.original_component.head_dim)
        q, k, v = (project(x).view(heads).transpose(1, 2) for project in (attn.q, attn.k, attn.v))
        if "q_norm" in attn.submodules:
            q, k = attn.hook_q_normed(attn.q_norm(q)), attn.hook_k_normed(attn.k_norm(k))
        q, k = apply_rotary_pos_emb(q, k, *attn._apply_position_embedding_hooks(position_embeddings))
        q, k = attn.hook_rot_q(q), attn.hook_rot_k(k)
        cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
        k, v = attn._update_kv_cache(k, v, past_key_values=cache)
        z = self.attended(q, k, v, attention_mask)
        output: Tensor = attn.hook_out(attn.o(z.transpose(1, 2).reshape(*x.shape[:2], -1)))
        return output, None

    def attended(
        self,
        q: Float[Tensor, "batch head pos d_head"],
        k: Float[Tensor, "batch kv_head key d_head"],
        v: Float[Tensor, "batch kv_head key d_value"],
        attention_mask: Tensor | None,
    ) -> Float[Tensor, "batch head pos d_value"]:
        """From queries, keys and values to the output of the heads."""
        self._refuse_other(q.shape[2], k.shape[2], len(q))
        blocks = self._blocks(q, k, attention_mask)
        self._show_rows(blocks)
        if self._each_block is not None:
            for start, block in blocks:
                self._each_block(start, block)
        return blocks.attend(v) if self._each_gradient is None else blocks.attend_and_show(v, self._each_gradient)

    def _blocks(self, q: Tensor, k: Tensor, attention_mask: Tensor | None) -> PatternBlocks:
        visible = self._visible(k.shape[2])
        visible = None if visible is None else visible.to(q.device)
        return _blocks(self.target, q, k, attention_mask, visible, *self._scores_by())

    def _scores_by(self) -> tuple[float, float | None]:
        """What scores are multiplied by, and their soft cap."""
        return float(self.target.original_component.scaling), soft_cap(self.target)

    def _show_rows(self, blocks: PatternBlocks) -> None:
        """Fire the hooks of scores and pattern with the rows."""
        if self._chosen:
            self._shown(self._chosen.masked(self._chosen.scores(blocks), blocks))
        else:  # nothing that could be edited, and no time spent on it
            none = blocks.q.new_zeros(*blocks.q.shape[:2], 0, blocks.length)
            seen(self.target.hook_pattern, seen(self.target.hook_attn_scores, none))


class _InterfaceRows(_BlockRows):
    """The attention of one block whose own code makes queries, keys and values."""

    relies_on: ClassVar[tuple[str, ...]] = ("attend",)

    def _changes(self) -> dict[str, Any]:
        return {"attend": self.attend}

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, scaling: float, **others: Any
    ) -> Tensor:
        """InterfaceAttention.attend; the output from SDPA."""
        self._given = scaling, others.get("softcap")
        return self.attended(q, k, v, attention_mask)

    def _scores_by(self) -> tuple[float, float | None]:
        return self._given


def attend(
    attn: Any,
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch kv_head key d_head"],
    v: Float[Tensor, "batch kv_head key d_value"],
    attention_mask: Tensor | None,
) -> Float[Tensor, "batch head pos d_value"]:
    """What a block's attention gives by SDPA, no rows and no hooks."""
    return _blocks(attn, q, k, attention_mask, None, float(attn.original_component.scaling), soft_cap(attn)).attend(v)


def later_blocks(attn: Any, q: Tensor, k: Tensor, attention_mask: Tensor | None, cut: Cut) -> PatternBlocks:
    """The same as parts, where the queries are those of a cut."""
    if attention_mask is None:
        return _blocks(attn, q, k, None, None, float(attn.original_component.scaling), soft_cap(attn))
    mask = seen_by(attention_mask, k.shape[2], k.shape[2], q.device)[:, :, cut.first :].transpose(1, 2)
    mask = cut.queried(mask).transpose(1, 2)
    scale = 1 / float(attn.original_component.scaling)
    return PatternBlocks(q, k, scale, mask=mask, unseen=unseen_keys(attn), cap=soft_cap(attn))


def _blocks(
    attn: Any,
    q: Tensor,
    k: Tensor,
    attention_mask: Tensor | None,
    visible: Bool[Tensor, "batch key"] | None,
    scaling: float,
    cap: float | None,
) -> PatternBlocks:
    scale = 1 / scaling
    if attention_mask is None:
        causal = is_causal(attn)
        return PatternBlocks(q, k, scale, causal=causal, padding=visible, unseen=unseen_keys(attn), cap=cap)
    mask = seen_by(attention_mask, q.shape[2], k.shape[2], q.device)
    if visible is not None:
        mask = mask & visible[:, None, None]
    past = k.shape[2] - q.shape[2]
    # No key is later than the last query; of more queries to look waits for the device.
    causal = q.shape[2] == 1 or not bool(mask.triu(diagonal=1 + past).any())
    return PatternBlocks(q, k, scale, causal=causal, mask=mask, unseen=unseen_keys(attn), cap=cap)


def soft_cap(attn: Any) -> float | None:
    """Beyond which no score of a block's attention goes (Gemma 2)."""
    cap = getattr(attn.original_component, "attn_logit_softcapping", None)
    return None if cap is None else float(cap)


def _refuse_extras(attn: InterfaceAttention) -> None:
    if attn.extras:
        raise LensplugError(
            f"attention of this model has {' and '.join(sorted(attn.extras))}, which BridgeAttentionRows does not know:"
            " run without query_positions."
        )


def _refuse(attn: Any) -> None:
    from transformer_lens.model_bridge.generalized_components import PositionEmbeddingsAttentionBridge

    hf_attn = attn.original_component
    if type(attn) is not PositionEmbeddingsAttentionBridge:
        raise LensplugError(
            f"the model's attention is a {type(attn).__name__}, which BridgeAttentionRows does not know."
        )
    unknown = {
        "attention sinks": getattr(hf_attn, "sinks", None) is not None,
        "a gate": "gate" in attn.submodules or getattr(attn.config, "gated_q_proj", False),
        "clipped queries and keys": getattr(hf_attn.config, "clip_qkv", None) is not None,
        "scaled keys": getattr(hf_attn, "key_multiplier", None) is not None,
        "norms over all heads": attn._qk_norm_phase not in (None, "post_reshape"),
        "rotations of another form": getattr(attn.config, "rotary_adjacent_pairs", False),
    }
    for feature, is_present in unknown.items():
        if is_present:
            raise LensplugError(f"the model's attention has {feature}, which BridgeAttentionRows does not know.")
    for setting in INPUT_FORKS:
        if getattr(attn.config, setting, False):
            raise LensplugError(
                f"attention rows are not known with {setting}: lens.model.set_{setting}(False) first, or run without"
                " query_positions."
            )
