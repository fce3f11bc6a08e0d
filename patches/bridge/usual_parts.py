"""The gap: TransformerLens bridges the families that it has an adapter for, and takes their names from a table.

`build_tried_bridge` makes a bridge of any decoder of transformers whose layers have the usual parts, from what its
modules are and do: `layer_parts` finds them by running it, `attention_interface` hooks attention where the layer's own
code calls for it, `any_norm` its norms, and `block_terms` the stream. Nothing of the model's code is written anew. What
comes of it is not known to be right before it is proved (`lensplug.proof`).

Around decoder and head stands a shell, `CausalShell`, whatever the family: the decoder, its head, and what the full
model makes of logits.

Checked against transformer-lens 3.9.0 and 4.3.0, transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    MLPBridge,
    PosEmbedBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers.modeling_outputs import CausalLMOutputWithPast

from lensplug.patches.bridge.any_norm import AnyNorm
from lensplug.patches.bridge.attention_interface import InterfaceAttention, head_size, key_value_heads
from lensplug.patches.bridge.layer_parts import PATTERNS_ALONE, DecoderParts, LayerParts, decoder_parts
from lensplug.patches.bridge.own_layers import ReadableLinear
from lensplug.patches.bridge.routing import routers_of
from lensplug.patches.bridge.scaled_embedding import ScaledEmbedding
from lensplug.patches.core_parts import Asked, CoreParts, embedding_multiplier
from lensplug.patches.errors import LensplugError
from lensplug.patches.modules import attention_of
from lensplug.patches.pattern_blocks import capped
from lensplug.patches.placement import device_of

MLP_NAMES = (
    {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"},
    {"gate": "w1", "in": "w3", "out": "w2"},
    {"in": "up_proj", "out": "down_proj"},
    {"in": "fc1", "out": "fc2"},
    {"in": "dense_h_to_4h", "out": "dense_4h_to_h"},
    {"out": "down_proj"},
)
"""What matrices of an MLP are called, the fullest first: TransformerLens's name -> theirs."""
MANY = 10**6
"""Positions of a decoder that does not say how many it takes."""


class CausalShell(nn.Module):
    """A causal language model of a decoder and its head, as far as a bridge needs one."""

    def __init__(self, decoder: nn.Module, head: nn.Module, config: Any, soft_cap: float | None = None) -> None:
        """Keep them."""
        super().__init__()
        self.soft_cap = soft_cap
        self.model, self.lm_head, self.config = decoder, head, config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    def get_decoder(self) -> nn.Module:
        """The decoder."""
        return self.model

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of words."""
        decoder: Any = self.model
        embedding: nn.Module = decoder.embed_tokens
        return embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Decoder, then head."""
        for name in ("return_dict", "output_attentions", "output_hidden_states", "logits_to_keep"):
            kwargs.pop(name, None)
        given = {name: value for name, value in kwargs.items() if value is not None}
        kept = cache if cache is not None else past_key_values
        if kept is not None:  # which transformers has renamed; a decoder takes any name, and forgets by another
            renamed = "cache" in signature(type(self.model).forward).parameters
            given["cache" if renamed else "past_key_values"] = kept
        output = self.model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=bool(use_cache),
            **given,
        )
        logits = self.lm_head(output.last_hidden_state)
        result = CausalLMOutputWithPast(logits=logits if self.soft_cap is None else capped(logits, self.soft_cap))
        for name in ("cache", "past_key_values"):
            if (value := getattr(output, name, None)) is not None:
                result[name] = value
        return result


class _Block(BlockBridge):  # type: ignore[misc]
    """A layer, whose components are made of what it has."""

    hook_aliases = {"hook_resid_pre": "hook_in", "hook_resid_post": "hook_out"}  # noqa: RUF012

    def set_original_component(self, original_component: nn.Module) -> None:
        """Wrap a layer, and choose its components."""
        super().set_original_component(original_component)
        parts = self._parts[int(self.name.rpartition(".")[2])]
        self.submodules = _components(original_component, parts, self.config)


def build_tried_bridge(
    core: CoreParts, decoder: nn.Module, head: nn.Module, asked: Asked | None = None, *, model_name: str = ""
) -> Any:
    """A TransformerBridge of a decoder that no table knows.

    Args:
        core: The core, whose weights they are.
        decoder: A copy of its decoder, whose modules the bridge may replace.
        head: A copy of its head.
        asked: What its model gives it, and makes of logits; None: embeddings, and nothing.
        model_name: For `cfg.model_name`.

    Raises:
        LensplugError: If its layers lack the usual parts.
    """
    asked = asked or Asked({})
    parts = decoder_parts(decoder, _multipliers(core.text_config), asked.arguments)
    if not any(of_layer.attends for of_layer in parts.layers):
        layers: Any = decoder.layers
        mixers = [(layer, of_layer.attention) for layer, of_layer in zip(layers, parts.layers, strict=True)]
        writers = {type(layer.get_submodule(name)).__name__ for layer, name in mixers if name is not None}
        raise LensplugError(
            f"no layer of {type(decoder).__name__} adds what attention returns to the residual stream"
            f" (what it adds is that of {', '.join(sorted(writers)) or 'no part'}): there is no attention to show."
            f" {PATTERNS_ALONE}"
        )
    cfg = _config(core, decoder, parts, model_name)
    config: Any = decoder.config
    if asked.logit_scale != 1:
        _scale_logits(getattr(decoder, parts.final_norm), head, asked.logit_scale, cfg.rmsnorm_uses_offset)
    if asked.forbidden:
        _forbid(head, asked.forbidden)
    if asked.soft_cap is not None:
        cfg.output_logits_soft_cap = asked.soft_cap
    shell = CausalShell(decoder, head, config, asked.soft_cap).train(decoder.training)
    model = TransformerBridge(shell, _Adapter(cfg, parts, decoder), None)
    model.tried = parts
    with routers_of([block.original_component for block in model.blocks]) as routers:
        _refuse_unseen(model, asked.arguments)
    model.routers = dict(routers)
    if routers:
        cfg.num_experts = max(router.experts for router in routers.values())
        cfg.experts_per_token = max(router.chosen for router in routers.values())
    return model


def _scale_logits(norm: Any, head: Any, scale: float, offset: bool) -> None:
    """Multiply logits, by the weight of the norm before the head: a copy of one row, and no part more.

    What reads logits from the stream (the logit lens, directions of logits) has norm and head, and nothing behind.
    """
    if head.bias is not None:
        raise LensplugError(f"logits are multiplied by {scale} behind a head with a bias, for which there is no place.")
    for name in ("weight", "bias"):
        if (value := getattr(norm, name, None)) is not None:
            shift = int(offset and name == "weight")
            scaled = ((value.detach().double() + shift) * scale - shift).to(value.dtype)
            setattr(norm, name, nn.Parameter(scaled, requires_grad=value.requires_grad))


def _forbid(head: Any, tokens: tuple[int, ...]) -> None:
    """Set the logits of some tokens to the least number there is, by a bias of the head, which is a copy.

    To that number nothing can be added that a dtype would tell.
    """
    if head.bias is not None:
        raise LensplugError(f"logits of {len(tokens)} tokens are forbidden behind a head with a bias of its own.")
    bias = torch.zeros(head.out_features, dtype=head.weight.dtype, device=head.weight.device)
    bias[list(tokens)] = torch.finfo(bias.dtype).min
    head.bias = nn.Parameter(bias, requires_grad=head.weight.requires_grad)


def _refuse_unseen(model: Any, arguments: Mapping[str, Any]) -> None:
    """Raise unless attention of every layer goes through transformers' interface, where its hooks are."""
    with torch.no_grad():
        words = {"input_ids": torch.ones(1, 2, dtype=torch.long, device=model.original_model.device)}
        model.original_model(**{**(arguments or words), "use_cache": False})
    for layer, block in enumerate(model.blocks):
        attn = attention_of(block)
        if attn is not None and not attn.has_run:
            raise LensplugError(
                f"attention of layer {layer} ({type(attn.original_component).__name__}) is not called by transformers'"
                " attention interface: its pattern is not known."
            )


class _Adapter(ArchitectureAdapter):  # type: ignore[misc]
    def __init__(self, cfg: TransformerBridgeConfig, parts: DecoderParts, decoder: Any) -> None:
        super().__init__(cfg)
        scale = embedding_multiplier(decoder)
        blocks = _Block(name="model.layers", config=cfg)
        blocks._parts = parts.layers
        self.component_mapping = {
            "embed": EmbeddingBridge("model.embed_tokens")
            if scale == 1
            else ScaledEmbedding("model.embed_tokens", scale),
            "blocks": blocks,
            "ln_final": AnyNorm(name=f"model.{parts.final_norm}", config=cfg),
            "unembed": UnembeddingBridge(name="lm_head", config=cfg),
        }
        if isinstance(getattr(decoder, "embed_positions", None), nn.Module):  # OPT adds them to the stream
            self.component_mapping["pos_embed"] = PosEmbedBridge("model.embed_positions")
        self.weight_processing_conversions: dict[str, Any] = {}


def _components(layer: nn.Module, parts: LayerParts, cfg: Any) -> dict[str, Any]:
    components: dict[str, Any] = {ours: AnyNorm(name=theirs, config=cfg) for ours, theirs in parts.norms.items()}
    if parts.attention is not None:
        mixer = getattr(layer, parts.attention)
        if parts.attends:
            components["attn"] = InterfaceAttention.of(parts.attention, mixer, cfg)
        else:
            components["mixer"] = GeneralizedComponent(name=parts.attention)
    # A mixture of experts stays as it is: layers ask of what class it is. What it writes is on `hook_mlp_out`.
    if parts.mlp is not None and (mlp := _mlp(parts.mlp, getattr(layer, parts.mlp))) is not None:
        components["mlp"] = mlp
    return components


class _MLP(MLPBridge):  # type: ignore[misc]
    """An MLP by its own code, with hooks on its matrices where they are plain."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The MLP."""
        return GeneralizedComponent.forward(self, *args, **kwargs)


def _mlp(name: str, module: nn.Module) -> Any:
    for names in MLP_NAMES:
        if all(type(getattr(module, theirs, None)) in (nn.Linear, ReadableLinear) for theirs in names.values()):
            component = _MLP(name=name, submodules={ours: LinearBridge(name=theirs) for ours, theirs in names.items()})
            component.hook_aliases = {"hook_post": "out.hook_in"}
            if "in" in names:
                component.hook_aliases["hook_pre_linear" if "gate" in names else "hook_pre"] = "in.hook_out"
            if "gate" in names:
                component.hook_aliases["hook_pre"] = "gate.hook_out"
            return component
    return None


def _multipliers(config: Any) -> tuple[float, ...]:
    """Numbers of a configuration by which layers may multiply what their parts return."""
    named = [value for name, value in vars(config).items() if name.endswith(("multiplier", "scale", "scaling"))]
    numbers = [float(value) for value in named if isinstance(value, float | int) and value not in (0, 1)]
    return tuple(dict.fromkeys(numbers))


def _key_value_heads(attention: Any, config: Any) -> int | None:
    """How many heads of keys an attention has; from the configuration, unless its layers differ (Gemma 4)."""
    if getattr(config, "per_layer_config", None) is None:
        return getattr(config, "num_key_value_heads", None)
    return key_value_heads(attention)


def _config(core: CoreParts, decoder: Any, parts: DecoderParts, model_name: str) -> TransformerBridgeConfig:
    config = core.text_config
    d_model = core.decoder.embed_tokens.weight.shape[1]
    n_heads = int(config.num_attention_heads)
    attention = next(
        getattr(layer, of_layer.attention)
        for layer, of_layer in zip(decoder.layers, parts.layers, strict=True)
        if of_layer.attends and of_layer.attention is not None
    )
    norm = AnyNorm(name="norm", config=None)
    norm.set_original_component(getattr(decoder, parts.final_norm))
    if norm.formula is None:
        raise LensplugError(
            f"the final norm of {type(decoder).__name__} ({type(norm.original_component).__name__}) is neither a root"
            " mean square nor a LayerNorm: what directions of logits are in the stream is not known."
        )
    rows = core.head.out_features
    cfg = TransformerBridgeConfig(
        d_model=d_model,
        d_head=head_size(attention) or d_model // n_heads,
        n_layers=len(decoder.layers),
        n_ctx=int(getattr(config, "max_position_embeddings", None) or MANY),
        n_heads=n_heads,
        d_vocab=core.decoder.embed_tokens.weight.shape[0],
        d_vocab_out=rows,
        n_key_value_heads=_key_value_heads(attention, config) or n_heads,
        normalization_type="LN" if norm.formula.centred else "RMS",
        final_rms=not norm.formula.centred,
        rmsnorm_uses_offset=norm.formula.rmsnorm_uses_offset,
        eps=norm.formula.eps,
        parallel_attn_mlp=not any(of_layer.reads_mid for of_layer in parts.layers),
        architecture="CausalShell",
        model_name=model_name or config.model_type,
        dtype=core.decoder.embed_tokens.weight.dtype,
    )
    cfg.device = str(device_of(core.decoder.embed_tokens))
    return cfg
