"""Blocks of a HookedTransformer that no hook sees, without their hook points: for the steps of an answer.

The gap: a step of an answer has one position, and its time is that of calls, not of numbers. HookedTransformer calls
twenty empty hook points in each block, makes each norm's input three times, looks for the shape of each weight, and
rotates all keys of its cache again: twice the time of the same model in Hugging Face. Under this patch a block that no
hook sees computes the same numbers, to the bit, in the fewest calls; keys are kept rotated too, in a cache that grows
in steps. Hooks on the residual stream that enters and leaves a block are called, and so are those on rows of scores and
patterns, where rows are made. A block with any other hook, on its points or modules, runs as ever.

Checked against TransformerLens 3.9, `TransformerBlock.forward` and `AbstractAttention.forward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.components import (
    Attention,
    GatedMLP,
    GroupedQueryAttention,
    RMSNorm,
    RMSNormPre,
    TransformerBlock,
)
from transformer_lens.utilities.tensors import get_offset_position_ids

from lensplug.patches.hook_points import seen
from lensplug.patches.later_positions import Cut, LaterPositions
from lensplug.patches.modules import every_module
from lensplug.patches.pattern_blocks import PatternBlocks
from lensplug.patches.unseen_keys import unseen_keys
from lensplug.patches.unwatched import Unwatched, UnwatchedBlock, as_made

OTHERWISE = (
    "use_attn_in", "use_split_qkv_input", "use_attn_result", "use_hook_mlp_in", "use_normalization_before_and_after",
    "use_attention_sinks", "use_logn_attn", "use_dynamic_ntk_rope", "parallel_attn_mlp", "attn_only", "load_in_4bit",
    "rotary_adjacent_pairs", "ungroup_grouped_query_attention", "attn_scores_soft_cap", "clip_qkv",
)  # fmt: skip
"""Settings under which a block computes something else, and is left alone (0 or below, None, False: not so)."""
POST_NORMS = ("OlmoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")
"""Architectures with other norms."""


class UnwatchedBlocks(Unwatched):
    """While applied, blocks of a HookedTransformer that no hook sees run without their hook points."""

    def __init__(self, model: Any, later: LaterPositions | None = None) -> None:
        """Keep `model`; nothing is changed before `apply`.

        Args:
            model: A HookedTransformer.
            later: Which positions of each pass are computed; None: all.
        """
        positions = _Positions()
        with_modules = [(block, every_module(block)) for block in model.blocks]
        known = [_Block(block, modules, positions) for block, modules in with_modules if _is_known(block, modules)]
        super().__init__(model, known, later)


class _Positions:
    """For the current step, shared by all blocks: the index of each position, and which keys are padding."""

    def __init__(self) -> None:
        self._mask: Tensor | None = None

    def of(self, mask: Int[Tensor, "batch key"], past: int) -> tuple[Int[Tensor, "batch pos"], Tensor]:
        if mask is not self._mask:
            self._mask, self._made = mask, (get_offset_position_ids(past, mask), mask.bool())
        return self._made


class _Block(UnwatchedBlock):
    relies_on = ("ln1", "attn", "ln2", "mlp")
    replaced_for_rows = "calculate_attention_scores"

    def __init__(self, block: Any, modules: Sequence[nn.Module], positions: _Positions) -> None:
        super().__init__(block, modules, (block.hook_resid_pre, block.hook_resid_mid, block.hook_resid_post))
        self._positions = positions

    def _short(  # type: ignore[override]
        self,
        residual: Float[Tensor, "batch pos d_model"],
        shortformer_pos_embed: None = None,
        past_kv_cache_entry: Any = None,
        attention_mask: Int[Tensor, "batch key"] | None = None,
    ) -> Float[Tensor, "batch computed d_model"]:
        entry = past_kv_cache_entry
        is_usable = entry is None or (isinstance(entry, GrowingEntry) and entry.all_rotated)
        if shortformer_pos_embed is not None or not is_usable:
            original_output: Tensor = self._forward(residual, shortformer_pos_embed, entry, attention_mask)
            return original_output
        block = self.target
        residual = seen(block.hook_resid_pre, residual)
        if (cut := self._cut(residual)) is not None:
            residual = cut.later
        x = _norm(block.ln1, residual)
        if cut is None:
            middle = self._attended(x, entry, attention_mask).add_(residual)
        else:
            middle = self._attended_later(x, cut, attention_mask).add_(cut.queried(residual))
        middle = seen(block.hook_resid_mid, middle)
        mlp, x = block.mlp, _norm(block.ln2, middle)
        # Written into the activation, which is not used elsewhere; its input is gone before the next is made.
        post = mlp.act_fn(F.linear(x, mlp.W_gate.T.contiguous()))
        post *= F.linear(x, mlp.W_in.T.contiguous())
        post += mlp.b_in
        output = seen(block.hook_resid_post, F.linear(post, mlp.W_out.T.contiguous(), mlp.b_out).add_(middle))
        return output if cut is None else cut.given_on(output)

    def _attended(self, x: Tensor, entry: Any, attention_mask: Tensor | None) -> Tensor:
        q, (k, v) = self._queries(x), self._keys_and_values(x)
        past = 0 if entry is None else entry.length
        cos, sin, padding = self._tables(past, x.shape[1], attention_mask)
        q, rotated = _rotated(q, cos, sin), _rotated(k, cos, sin)
        if entry is not None:
            rotated, v = entry.append_rotated(k, rotated, v)
        if (rows := self._rows()) is not None:
            z = rows.attended(q, rotated, v, attention_mask)
        else:
            z = self._blocks(q, rotated, padding).attend(v.transpose(1, 2)).transpose(1, 2)
        return self._projected(z)

    def _attended_later(self, x: Tensor, cut: Cut, attention_mask: Tensor | None) -> Tensor:
        """Of the later positions; keys and values of the earlier ones are those of the stream that is known."""
        cos, sin, padding = self._tables(0, cut.length, attention_mask)

        def known(stream: Tensor) -> tuple[Tensor, Tensor]:
            k, v = self._keys_and_values(_norm(self.target.ln1, stream))
            return _rotated(k, cos[: len(k), : k.shape[1]], sin[: len(k), : k.shape[1]]), v

        behind = cos[:, cut.first :], sin[:, cut.first :]
        q = _rotated(self._queries(cut.queried(x)), *map(cut.queried, behind))
        k, v = self._keys_and_values(x)
        rotated, v = cut.of_all(_rotated(k, *behind), v, known)
        blocks, v = self._blocks(q, rotated, padding), v.transpose(1, 2)
        z = blocks.attend(v) if cut.rows is None else blocks.attend_at(cut.rows, v)
        return self._projected(z.transpose(1, 2))

    def _queries(self, x: Tensor) -> Float[Tensor, "batch pos head d_head"]:
        attn = self.target.attn
        q = _by_head(x, attn.W_Q, attn.b_Q)
        return _norm(attn.q_norm, q) if attn.cfg.use_qk_norm else q

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Before their rotation."""
        attn = self.target.attn
        is_shared = isinstance(attn, GroupedQueryAttention)
        weights: tuple[Tensor, ...] = (
            (attn._W_K, attn._b_K, attn._W_V, attn._b_V) if is_shared else (attn.W_K, attn.b_K, attn.W_V, attn.b_V)
        )
        k, v = _by_head(x, *weights[:2]), _by_head(x, *weights[2:])
        return _norm(attn.k_norm, k) if attn.cfg.use_qk_norm else k, v

    def _blocks(self, q: Tensor, rotated: Tensor, padding: Tensor | None) -> PatternBlocks:
        attn = self.target.attn
        window = attn.cfg.window_size if attn.attn_type == "local" else None
        scale, unseen = float(attn.attn_scale), unseen_keys(attn)
        q, k = q.transpose(1, 2), rotated.transpose(1, 2)
        return PatternBlocks(q, k, scale, window, causal=True, padding=padding, unseen=unseen)

    def _projected(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        attn = self.target.attn
        return F.linear(z.flatten(2), attn.W_O.permute(2, 0, 1).flatten(1), attn.b_O)

    def _tables(self, past: int, length: int, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cosines and sines of these positions, [batch or 1, pos, 1, d_head], and the keys that are no padding."""
        attn = self.target.attn
        if past + length > len(attn.rotary_cos):
            attn._extend_rotary_embeddings(min(attn.cfg.n_ctx, max(past + length, 2 * len(attn.rotary_cos))))
        if mask is None:
            current = slice(past, past + length)
            return attn.rotary_cos[None, current, None], attn.rotary_sin[None, current, None], None
        positions, padding = self._positions.of(mask, past)
        return attn.rotary_cos[positions, None], attn.rotary_sin[positions, None], padding


class GrowingEntry:
    """The keys and values of one block, as TransformerLens's cache keeps them, in tensors that grow in steps.

    TransformerLens reallocates its cache for every token. Keys are kept before their rotation, which is what a watched
    block asks for, and, as long as the block is unwatched, rotated too.
    """

    GROWTH = 128
    """Positions."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self.length = 0
        self.all_rotated = True
        self._kept: list[Tensor] = []

    @property
    def past_keys(self) -> Float[Tensor, "batch pos kv_head d_head"]:
        """Before their rotation."""
        return self._kept[0][:, : self.length] if self._kept else torch.empty(0, 0, 0, 0)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys, before their rotation, and values, with those of these positions; what a watched block calls."""
        self.all_rotated, self._kept[2:] = False, []
        k, v = self._append(k, v)
        return k, v

    def append_rotated(self, k: Tensor, rotated: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All rotated keys, and all values."""
        _, v, rotated = self._append(k, v, rotated)
        return rotated, v

    def _append(self, *new: Tensor) -> list[Tensor]:
        length = self.length + new[0].shape[1]
        if not self._kept or length > self._kept[0].shape[1]:
            for i, tensor in enumerate(new):
                larger = tensor.new_empty(len(tensor), length + self.GROWTH, *tensor.shape[2:])
                if self.length:
                    larger[:, : self.length] = self._kept[i][:, : self.length]
                self._kept[i : i + 1] = [larger]
        for stored, tensor in zip(self._kept, new, strict=True):
            stored[:, self.length : length] = tensor
        self.length = length
        return [stored[:, :length] for stored in self._kept]


def _norm(norm: Any, x: Tensor) -> Tensor:
    """An RMSNorm, as TransformerLens computes it."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    x = (x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()).to(norm.cfg.dtype)
    return x * norm.w if isinstance(norm, RMSNorm) else x


def _by_head(x: Tensor, weight: Tensor, bias: Tensor) -> Float[Tensor, "batch pos head d_head"]:
    flat = F.linear(x, weight.transpose(1, 2).flatten(0, 1), bias.flatten())
    return flat.view(*x.shape[:2], *bias.shape)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def _is_known(block: Any, modules: Sequence[nn.Module]) -> bool:
    """Whether a block of these modules is as TransformerLens makes those of Llama and its relatives, on one device."""
    cfg = block.cfg
    attn: Any = getattr(block, "attn", None)
    mlp: Any = getattr(block, "mlp", None)
    norms = [getattr(block, name, None) for name in ("ln1", "ln2")]
    if not (as_made(block, [TransformerBlock]) and as_made(attn, [Attention, GroupedQueryAttention])):
        return False
    norms += [attn.q_norm, attn.k_norm] if cfg.use_qk_norm else []
    return (
        as_made(mlp, [GatedMLP])
        and not cfg.is_layer_norm_activation()
        and all(as_made(norm, [RMSNorm, RMSNormPre]) for norm in norms)
        and cfg.positional_embedding_type == "rotary"
        and cfg.rotary_dim == cfg.d_head
        and (attn._attention_dir_override or cfg.attention_dir) == "causal"
        and cfg.original_architecture not in POST_NORMS
        and not any((getattr(cfg, name, None) or 0) > 0 for name in OTHERWISE)
        and len(devices := {attn.rotary_cos.device, *_devices(modules)}) == 1
        and devices.pop().type != "mps"
    )


def _devices(modules: Sequence[nn.Module]) -> set[torch.device]:
    parameters = [module._parameters for module in modules if module._parameters]
    return {weight.device for several in parameters for weight in several.values() if weight is not None}
