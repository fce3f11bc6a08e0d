"""Blocks of a TransformerBridge that no hook sees, without their hook points: what `unwatched_blocks` does for it.

The gap: a step of an answer has one position, and its time is that of calls, not of numbers. A bridge's block calls
thirty components and hook points, and reads the signature of what it wraps each time: twice the time of the same model
in Hugging Face. Under this patch a block that no hook sees computes the same numbers, to the bit, in the fewest calls.
Hooks on the residual stream that enters and leaves a block are called, and so are those on rows of scores and patterns,
where rows are made. A block with any other hook, on its points or modules, runs as ever.

Checked against transformer-lens 3.9.0 and 4.3.0, blocks with norms before attention and MLP, and, for Gemma 3, behind
them too; attention of the kind that `attention_rows` knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    GatedMLPBridge,
    LinearBridge,
    NormalizationBridge,
    PositionEmbeddingsAttentionBridge,
    RMSNormalizationBridge,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lensplug.patches.bridge.attention_rows import CACHES, attend, later_blocks
from lensplug.patches.hook_points import seen
from lensplug.patches.later_positions import Cut, LaterPositions
from lensplug.patches.modules import every_module
from lensplug.patches.unwatched import Unwatched, UnwatchedBlock, as_made, projected

FORKS = ("use_split_qkv_input", "use_attn_in", "use_attn_result", "use_hook_mlp_in")
"""Settings under which a block computes more."""
MLP = ("gate", "in", "out")
ATTENTION = ("q", "k", "v", "o")


class BridgeUnwatchedBlocks(Unwatched):
    """While applied, blocks of a bridge that no hook sees run without their hook points."""

    def __init__(self, model: Any, later: LaterPositions | None = None) -> None:
        """Keep `model`; nothing is changed before `apply`.

        Args:
            model: A TransformerBridge.
            later: Which positions of each pass are computed; None: all.
        """
        super().__init__(
            model, [_Block(block, index) for index, block in enumerate(model.blocks) if _is_known(block)], later
        )


class _Block(UnwatchedBlock):
    relies_on = ("_capture_hook_handles",)
    replaced_for_rows = "forward"

    def __init__(self, block: Any, index: int) -> None:
        self._added = index if hasattr(block, "hook_deepstack") else None
        super().__init__(block, every_module(block), (block.hook_in, block.hook_out))
        self._around = "ln1_post" in block.submodules
        self._linears = {name: getattr(block.attn, name).original_component for name in ATTENTION}
        self._linears |= {name: getattr(block.mlp, name).original_component for name in MLP}

    def _watched(self) -> bool:
        if getattr(self.target, "_stop_at_layer_idx", None) is not None:
            return True
        hooks_present = [hooks for hooks in self._hooks if hooks]
        # The block has hooks of its own, for settings that are off here.
        capture_hooks = {handle.id for handle in self.target._capture_hook_handles} if hooks_present else set()
        if not all(capture_hooks.issuperset(hooks) for hooks in hooks_present):
            return True
        return any(self._pattern_hooks) and self._rows() is None

    def _short(
        self,
        residual: Float[Tensor, "batch pos d_model"],
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if position_embeddings is None:
            return self._forward(residual, attention_mask=attention_mask, **kwargs)
        block, linears = self.target, self._linears
        residual = seen(block.hook_in, residual)
        cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
        if (cut := self._cut(residual)) is not None:
            residual = cut.later
        x = _norm(block.ln1, residual)
        if cut is None:
            attended = self._attended(x, position_embeddings, attention_mask, cache)
        else:
            attended = self._attended_later(x, cut, position_embeddings, attention_mask)
            residual = cut.queried(residual)
        if self._around:
            attended = _norm(block.ln1_post, attended)
        middle = residual + attended
        x = _norm(block.ln2, middle)
        act = block.mlp.original_component.act_fn
        # Written into the activation, which is not used elsewhere; its input is gone before the next is made.
        post = act(projected(x, linears["gate"]))
        post *= projected(x, linears["in"])
        mlp_output = projected(post, linears["out"])
        output = middle + (_norm(block.ln2_post, mlp_output) if self._around else mlp_output)
        if self._added is not None and kwargs.get("deepstack") is not None:
            added = kwargs["deepstack"][self._added]
            output = output + (added if cut is None else cut.queried(added[:, cut.first :]))
        output = seen(block.hook_out, output)
        return output if cut is None else cut.given_on(output)

    def _attended(self, x: Tensor, position_embeddings: Any, attention_mask: Tensor | None, cache: Any) -> Tensor:
        attn = self.target.attn
        q, k, v = (self._by_head(name, x).transpose(1, 2) for name in ("q", "k", "v"))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        k, v = attn._update_kv_cache(k, v, past_key_values=cache)
        rows = self._rows()
        z = attend(attn, q, k, v, attention_mask) if rows is None else rows.attended(q, k, v, attention_mask)
        return projected(z.transpose(1, 2).reshape(*x.shape[:2], -1), self._linears["o"])

    def _attended_later(self, x: Tensor, cut: Cut, position_embeddings: Any, attention_mask: Tensor | None) -> Tensor:
        """Of the later positions; keys and values of the earlier ones are those of the stream that is known."""
        attn = self.target.attn

        def known(stream: Tensor) -> tuple[Tensor, Tensor]:
            early = _norm(self.target.ln1, stream)
            tables = [table[: len(stream), : stream.shape[1]] for table in position_embeddings]
            return self._rotated("k", early, tables), self._by_head("v", early)

        behind = [table[:, cut.first :] for table in position_embeddings]
        k, v = cut.of_all(self._rotated("k", x, behind), self._by_head("v", x), known)
        q = self._rotated("q", cut.queried(x), [cut.queried(table) for table in behind]).transpose(1, 2)
        v = v.transpose(1, 2)
        blocks = later_blocks(attn, q, k.transpose(1, 2), attention_mask, cut)
        z = blocks.attend(v) if cut.rows is None else blocks.attend_at(cut.rows, v)
        return projected(z.transpose(1, 2).flatten(2), self._linears["o"])

    def _rotated(self, name: str, x: Tensor, tables: Sequence[Tensor]) -> Float[Tensor, "batch pos head d_head"]:
        """Queries or keys at the positions that cosines and sines are of."""
        turned: Tensor = apply_rotary_pos_emb(*[self._by_head(name, x)] * 2, *tables, unsqueeze_dim=2)[0]
        return turned

    def _by_head(self, name: str, x: Tensor) -> Float[Tensor, "batch pos head d_head"]:
        """Queries, keys or values, before their rotation."""
        attn, flat = self.target.attn, projected(x, self._linears[name])
        d_head = attn.original_component.head_dim
        by_head = flat.view(*x.shape[:2], flat.shape[-1] // d_head, d_head)  # there may be no positions
        normed = f"{name}_norm" in attn.submodules
        return _norm(getattr(attn, f"{name}_norm"), by_head) if normed else by_head


def _norm(norm: Any, x: Tensor) -> Tensor:
    """A norm as the bridge computes it without hooks."""
    if norm.use_native_layernorm_autograd or getattr(norm.config, "layer_norm_folding", False):
        normalized: Tensor = norm.original_component(x)
        return normalized if normalized.dtype == x.dtype else normalized.to(x.dtype)
    precise = x if x.dtype in (torch.float32, torch.float64) else x.float()
    scale = (precise.pow(2).mean(-1, keepdim=True) + getattr(norm.config, "eps", 1e-05)).sqrt()
    weighted: Tensor = norm._apply_weight_and_bias(precise / scale, x.dtype)
    return weighted


def _is_known(block: Any) -> bool:
    """Whether a block is as a bridge makes those of Llama and its relatives."""
    parts = block.submodules
    if not as_made(block, [BlockBridge]) or set(parts) - {"ln1", "ln1_post", "attn", "ln2", "ln2_post", "mlp"}:
        return False
    attn, mlp = block.attn, block.mlp
    if not as_made(attn, [PositionEmbeddingsAttentionBridge]) or not as_made(mlp, [GatedMLPBridge]):
        return False
    norms = [part for name, part in [*parts.items(), *attn.submodules.items()] if "ln" in name or "norm" in name]
    linears: list[Any] = [getattr(attn, name, None) for name in ATTENTION] + [getattr(mlp, name, None) for name in MLP]
    return (
        ("ln1_post" in parts) == ("ln2_post" in parts)
        and all(as_made(norm, [NormalizationBridge, RMSNormalizationBridge]) and norm.uses_rms_norm for norm in norms)
        and all(as_made(linear, [LinearBridge]) for linear in linears)
        and all(as_made(linear.original_component, [nn.Linear]) for linear in linears)
        and not getattr(mlp, "_use_processed_weights", False)
        and not any(getattr(config, name, False) for config in (block.config, attn.config) for name in FORKS)
    )
