"""Attention of any Hugging Face layer with hooks on scores and pattern: as the model's own code calls it.

The gap: TransformerLens computes attention anew for each family (rotations of a part of the head, gates, latent keys,
norms, sinks), and knows only those. In transformers 5 every layer makes its queries, keys and values itself, and hands
them to the function that the configuration names ("eager", "sdpa"). This component runs the layer's own code, and is
that function: scores, softmax and values are the same in all families.

Checked against transformer-lens 3.9.0 and 4.3.0, and transformers 5.17 and 5.24.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.model_bridge.generalized_components import LinearBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformers import AttentionInterface

from lensplug.patches.errors import LensplugError
from lensplug.patches.pattern_blocks import capped

IMPLEMENTATION = "lensplug_hooked"
"""Under this name transformers finds the function."""
_COMPONENT = "_lensplug_component"
EXTRAS = {"s_aux": "sinks", "position_bias": "a bias by position"}
"""What a layer may say besides, and what that is."""
PROJECTIONS = {"q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "o": ("o_proj", "out_proj", "dense", "wo")}


class InterfaceAttention(AttentionBridge):  # type: ignore[misc]
    """A layer's attention, by its own code; `hook_attn_scores` and `hook_pattern` where it calls for attention."""

    supports_split_qkv_fork = False
    supports_attn_result = False

    @classmethod
    def of(cls, name: str, module: nn.Module, cfg: Any) -> InterfaceAttention:
        """The component of an attention module, with its projections where they are plain."""
        d_head = head_size(module) or cfg.d_head
        widths = {"q": cfg.n_heads * d_head}
        submodules = {}
        for ours, names in PROJECTIONS.items():
            linear = next((part for theirs in names if (part := getattr(module, theirs, None)) is not None), None)
            theirs = next((theirs for theirs in names if getattr(module, theirs, None) is not None), "")
            if type(linear) is nn.Linear and widths.get(ours, linear.out_features) == linear.out_features:
                submodules[ours] = LinearBridge(name=theirs)
        n_kv = key_value_heads(module) or cfg.n_key_value_heads
        if (d_head, n_kv) != (cfg.d_head, cfg.n_key_value_heads):
            cfg = copy.copy(cfg)
            cfg.d_head, cfg.n_key_value_heads = d_head, n_kv
        component = cls(name=name, config=cfg, submodules=submodules)
        live = {"hook_q": "q", "hook_k": "k", "hook_v": "v", "hook_z": "o"}
        component.hook_aliases = {alias: path for alias, path in cls.hook_aliases.items() if live[alias] in submodules}
        return component

    def set_original_component(self, original_component: nn.Module) -> None:
        """Wrap a module, and be the function that it hands queries, keys and values to."""
        super().set_original_component(original_component)
        self._extras: set[str] | None = None
        AttentionInterface.register(IMPLEMENTATION, _attended)
        # Of its own: the decoder's says which masks it makes, and is everybody's.
        config: Any = copy.copy(original_component.config)
        config._attn_implementation = IMPLEMENTATION
        object.__setattr__(original_component, "config", config)
        object.__setattr__(original_component, _COMPONENT, self)

    @property
    def extras(self) -> set[str]:
        """What its scores go through besides a soft cap and a softmax ("sinks"); known once it has run."""
        return self._extras or set()

    @property
    def has_run(self) -> bool:
        """Whether its module has handed queries, keys and values over."""
        return self._extras is not None

    def attend(
        self,
        q: Float[Tensor, "batch head pos d_head"],
        k: Float[Tensor, "batch kv_head key d_head"],
        v: Float[Tensor, "batch kv_head key d_value"],
        attention_mask: Tensor | None,
        scaling: float,
        **others: Any,
    ) -> Float[Tensor, "batch head pos d_value"]:
        """From queries, keys and values to the output of the heads, through the hooks.

        Args:
            q: Queries, as the layer's code has made them.
            k: Keys; of a key-value cache too.
            v: Values.
            attention_mask: As Hugging Face gives it to SDPA; None is plainly causal.
            scaling: What scores are multiplied by.
            others: What the layer says besides: "softcap", "s_aux" (sinks).
        """
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scores = q @ k.transpose(2, 3) * scaling
        if others.get("softcap") is not None:
            scores = capped(scores, others["softcap"])
        scores = self._apply_reconstruct_attention_mask(scores, attention_mask, k.shape[2], q.shape[2])
        scores = self.hook_attn_scores(scores)
        sinks = others.get("s_aux")
        if sinks is None:
            pattern = F.softmax(scores, dim=-1, dtype=torch.float32)
        else:
            column = sinks.reshape(1, -1, 1, 1).expand(len(scores), -1, scores.shape[2], 1).to(scores)
            pattern = F.softmax(torch.cat([scores, column], dim=-1), dim=-1, dtype=torch.float32)[..., :-1]
        pattern = self.hook_pattern(self._scrub_compatibility_pattern_nans(pattern.to(v.dtype)))
        z: Tensor = pattern @ v
        return z


def head_size(module: nn.Module) -> int | None:
    """The width of a head, where the module says it."""
    size = getattr(module, "head_dim", None)
    return size if isinstance(size, int) else None


def key_value_heads(module: nn.Module) -> int | None:
    """How many heads of keys it makes, where its parts say it."""
    size, keys = head_size(module), getattr(module, "k_proj", None)
    width = getattr(keys, "out_features", None)
    return width // size if size and isinstance(width, int) and width % size == 0 else None


def _attended(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch pos head d_value"], None]:
    """What transformers calls in place of its own attention functions."""
    component = module.__dict__.get(_COMPONENT)
    if component is None:
        raise LensplugError(f"{IMPLEMENTATION!r} computes attention inside a lens only: set 'sdpa' or 'eager'.")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and not causal:
        attention_mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    component._extras = {words for name, words in EXTRAS.items() if others.get(name) is not None}
    z = component.attend(query, key, value, attention_mask, scaling, **others)
    return z.transpose(1, 2).contiguous(), None
