"""The gap: HookedTransformer learns its shape from a table of names and the hub.

`HookedTransformer.from_pretrained(name, hf_model=...)` looks the name up, asks the hub for a
configuration even when the model is in memory, hard-codes the dimensions of Llama-named models and
ignores a `head_dim` that differs from `hidden_size / heads`. A language core that sits inside a
multimodal model has no such name. This patch reads configuration and weights from the modules in
memory, and shares the weights: what HookedTransformer gets are views of the Hugging Face parameters.

Use `build_hooked_transformer` for a new model, `ConfigFix` to turn a HookedTransformer that you
already hold (and have hooks on, in a notebook) into the core of another model for a while. A
configuration attribute that is neither handled here nor known to be harmless is refused by name.

Checked against transformer-lens 3.9.0 and transformers 5.23.0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import einops
import torch
from torch import Tensor, nn

from lensplug.patches.core_parts import CoreParts
from lensplug.patches.errors import LensplugError
from lensplug.patches.hooked_transformer.names import HookedTransformer, HookedTransformerConfig
from lensplug.patches.patch import Patch
from lensplug.patches.sliding_windows import sliding_windows

DECODERS = {"llama": "LlamaModel", "qwen2": "Qwen2Model", "mistral": "MistralModel", "qwen3": "Qwen3Model"}
"""The decoders that HookedTransformer computes exactly: `model_type` of the configuration -> class."""

HANDLED = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "rope_parameters", "attention_bias", "mlp_bias", "sliding_window", "layer_types",
}  # fmt: skip
"""Attributes that decide the computation and are read below."""

HARMLESS = {
    # what the attributes decide is not the forward pass: training, generation, bookkeeping
    "initializer_range", "attention_dropout", "use_cache", "pretraining_tp", "use_sliding_window", "max_window_layers",
    "model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "name_or_path",
    "_commit_hash", "_attn_implementation_autoset", "attn_implementation", "auto_map", "output_attentions",
    "output_hidden_states", "return_dict", "problem_type", "id2label", "label2id", "num_labels", "is_decoder",
    "is_encoder_decoder", "chunk_size_feed_forward", "pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id",
    "decoder_start_token_id", "image_token_id", "image_token_index", "video_token_id", "video_token_index",
    "audio_token_id", "audio_token_index", "tokenizer_class", "prefix", "finetuning_task", "task_specific_params",
    "max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "num_beams", "num_return_sequences", "early_stopping",
    "neftune_noise_alpha", "unsloth_version", "unsloth_fixed",
}  # fmt: skip
"""Attributes that do not change the forward pass of an evaluated model."""

ROPE_KEYS = {
    "default": {"rope_theta"},
    "linear": {"rope_theta", "factor"},
    "llama3": {
        "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    },
}  # fmt: skip
"""The rotary scalings that HookedTransformer computes, and the parameters that each may have."""


def hooked_transformer_config(
    text_config: Any,
    *,
    d_vocab: int,
    d_vocab_out: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> HookedTransformerConfig:
    """The HookedTransformerConfig of a Llama, Qwen2, Mistral or Qwen3 configuration.

    Args:
        text_config: The Hugging Face configuration of the decoder.
        d_vocab: Rows of the embedding (the model at hand may have added tokens).
        d_vocab_out: Rows of the head; `d_vocab` if not given.
        dtype: The dtype of the weights.
        device: Where they are.

    Raises:
        LensplugError: If an attribute is not known to be handled or harmless; it is named.
    """
    _refuse_unknown_attributes(text_config)
    heads = text_config.num_attention_heads
    key_value_heads = getattr(text_config, "num_key_value_heads", None) or heads
    return HookedTransformerConfig(
        model_name=getattr(text_config, "_name_or_path", "") or text_config.model_type,
        original_architecture=DECODERS[text_config.model_type].replace("Model", "ForCausalLM"),
        n_layers=text_config.num_hidden_layers,
        d_model=text_config.hidden_size,
        n_heads=heads,
        n_key_value_heads=None if key_value_heads == heads else key_value_heads,
        d_head=getattr(text_config, "head_dim", None) or text_config.hidden_size // heads,
        d_mlp=text_config.intermediate_size,
        d_vocab=d_vocab,
        d_vocab_out=d_vocab_out or d_vocab,
        n_ctx=text_config.max_position_embeddings,
        act_fn=text_config.hidden_act,
        eps=text_config.rms_norm_eps,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        gated_mlp=True,
        final_rms=True,
        use_qk_norm=text_config.model_type == "qwen3",
        tie_word_embeddings=bool(getattr(text_config, "tie_word_embeddings", False)),
        default_prepend_bos=False,  # the chat template decides what a prompt begins with
        init_weights=False,
        dtype=dtype,
        device=str(device),
        **_rotary_arguments(text_config),
        **sliding_windows(text_config),
    )


def core_state_dict(core: CoreParts, cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    """HookedTransformer's state dict for the parts of a core, as views of their parameters.

    Only the biases that the decoder lacks are new tensors (zeros). Nothing is copied.
    """
    decoder, head = core.decoder, core.head
    n_kv = cfg.n_key_value_heads or cfg.n_heads
    kv = "_" if cfg.n_key_value_heads else ""  # GroupedQueryAttention keeps its own weights under _W_K, _W_V

    def zeros(*shape: int | None) -> Tensor:
        return torch.zeros(shape, dtype=cfg.dtype, device=cfg.device)  # type: ignore[arg-type]

    def bias(linear: nn.Linear, n_heads: int) -> Tensor:
        if linear.bias is None:
            return zeros(n_heads, cfg.d_head)
        return einops.rearrange(linear.bias, "(head d_head) -> head d_head", head=n_heads)

    def projection(linear: nn.Linear, n_heads: int) -> Tensor:
        return einops.rearrange(linear.weight, "(head d_head) d_model -> head d_model d_head", head=n_heads)

    weights: dict[str, Tensor] = {"embed.W_E": decoder.embed_tokens.weight}
    for index, layer in enumerate(decoder.layers):
        attn, mlp, block = layer.self_attn, layer.mlp, f"blocks.{index}"
        weights |= {
            f"{block}.ln1.w": layer.input_layernorm.weight,
            f"{block}.attn.W_Q": projection(attn.q_proj, cfg.n_heads),
            f"{block}.attn.b_Q": bias(attn.q_proj, cfg.n_heads),
            f"{block}.attn.{kv}W_K": projection(attn.k_proj, n_kv),
            f"{block}.attn.{kv}b_K": bias(attn.k_proj, n_kv),
            f"{block}.attn.{kv}W_V": projection(attn.v_proj, n_kv),
            f"{block}.attn.{kv}b_V": bias(attn.v_proj, n_kv),
            f"{block}.attn.W_O": einops.rearrange(
                attn.o_proj.weight, "d_model (head d_head) -> head d_head d_model", head=cfg.n_heads
            ),
            f"{block}.attn.b_O": zeros(cfg.d_model) if attn.o_proj.bias is None else attn.o_proj.bias,
            f"{block}.ln2.w": layer.post_attention_layernorm.weight,
            f"{block}.mlp.W_in": mlp.up_proj.weight.T,
            f"{block}.mlp.b_in": zeros(cfg.d_mlp),
            f"{block}.mlp.W_gate": mlp.gate_proj.weight.T,
            f"{block}.mlp.W_out": mlp.down_proj.weight.T,
            f"{block}.mlp.b_out": zeros(cfg.d_model),
        }
        if cfg.use_qk_norm:
            weights[f"{block}.attn.q_norm.w"] = attn.q_norm.weight
            weights[f"{block}.attn.k_norm.w"] = attn.k_norm.weight
    weights["ln_final.w"] = decoder.norm.weight
    weights["unembed.W_U"] = head.weight.T
    weights["unembed.b_U"] = zeros(cfg.d_vocab_out) if head.bias is None else head.bias
    return {name: weight.detach() for name, weight in weights.items()}


def build_hooked_transformer(
    core: CoreParts,
    *,
    tokenizer: Any = None,
    process_weights: bool = False,
    model_name: str = "",
) -> HookedTransformer:
    """A HookedTransformer that computes what `head(decoder(...))` computes.

    Args:
        core: Decoder, head and configuration; the decoder a LlamaModel, Qwen2Model, MistralModel or Qwen3Model.
        tokenizer: Kept as it is (TransformerLens's `set_tokenizer` would make another, from the hub).
        process_weights: Fold the norms, centre the unembedding, fold the value biases: what
            TransformerLens does by default in `from_pretrained`. Logits are then centred at each
            position, and the weights are a copy. Without it the weights are shared.
        model_name: For `cfg.model_name`.

    Raises:
        LensplugError: If the decoder is another class, or the configuration holds something unknown.
    """
    head = core.head
    if type(core.decoder).__name__ != DECODERS.get(core.model_type or ""):
        raise LensplugError(
            f"{type(core.decoder).__name__} with model_type {core.model_type!r} cannot be a"
            f" HookedTransformer: it computes exactly only {', '.join(DECODERS.values())}."
        )
    cfg = hooked_transformer_config(
        core.text_config,
        d_vocab=core.decoder.embed_tokens.weight.shape[0],
        d_vocab_out=head.weight.shape[0],
        dtype=head.weight.dtype,
        device=head.weight.device,
    )
    cfg.model_name = model_name or cfg.model_name
    state_dict = core_state_dict(core, cfg)
    model = _processed(cfg, state_dict) if process_weights else _sharing(cfg, state_dict)
    _take_rotations(model, core.decoder.rotary_emb)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(head.weight.requires_grad and name in state_dict)
    model.tokenizer = tokenizer
    if tokenizer is not None:
        model.cfg.tokenizer_prepends_bos = len(tokenizer("")["input_ids"]) > 0
    return model.train(core.decoder.training)


class ConfigFix(Patch):
    """While applied, a HookedTransformer is the language core of a model in memory.

    The instance keeps its identity (and its `forward`, and other patches on it); its configuration,
    weights and hook points are those of the core. `remove` brings back the old modules with the hooks
    that were on them. Of several, for other cores, the last one counts; they come off in reverse order.

        with ConfigFix(model, decoder, head, text_config, tokenizer=tokenizer):
            logits, cache = model.run_with_cache(tokens)
    """

    nests = True

    def __init__(
        self,
        model: HookedTransformer,
        decoder: Any,
        head: nn.Linear,
        text_config: Any,
        *,
        tokenizer: Any = None,
        process_weights: bool = False,
    ) -> None:
        """See `CoreParts` and `build_hooked_transformer` for the arguments."""
        super().__init__(model)
        self._of = {"decoder": decoder, "head": head, "text_config": text_config, "tokenizer": tokenizer}
        self._of["process_weights"] = process_weights
        self._build: Callable[[], HookedTransformer] = lambda: build_hooked_transformer(
            CoreParts(decoder, head, text_config), tokenizer=tokenizer, process_weights=process_weights
        )

    def _options(self) -> dict[str, Any]:
        return self._of

    def _changes(self) -> dict[str, Any]:
        if self.target.cfg.positional_embedding_type != "rotary":
            raise LensplugError(
                "ConfigFix needs a HookedTransformer with rotary positions as its basis, got"
                f" {self.target.cfg.positional_embedding_type!r}. Use build_hooked_transformer for a new model."
            )
        core = self._build()
        parts = ("cfg", "tokenizer", "embed", "hook_embed", "blocks", "ln_final", "unembed")
        return {name: getattr(core, name) for name in parts}

    def _settle(self) -> None:
        self.target.setup()  # TransformerLens's own index of names and hook points


def _sharing(cfg: HookedTransformerConfig, state_dict: dict[str, Tensor]) -> HookedTransformer:
    """A model whose parameters are the given tensors: built without memory, then assigned."""
    with torch.device("meta"):
        model = _construct(cfg, move_to_device=False)  # there is nothing to move yet
    mismatch = model.load_state_dict(state_dict, strict=False, assign=True)
    buffers = {name for name, _ in model.named_buffers()}
    if mismatch.unexpected_keys or set(mismatch.missing_keys) - buffers:
        raise LensplugError(
            "TransformerLens's HookedTransformer has other parameters than expected: missing"
            f" {sorted(set(mismatch.missing_keys) - buffers)}, unexpected {mismatch.unexpected_keys}."
        )
    for block in model.blocks:  # on the meta device these buffers had no values
        block.attn.IGNORE = torch.tensor(-torch.inf, device=cfg.device)
        block.attn.mask = torch.empty((0, 0), dtype=torch.bool, device=cfg.device)
    return model


def _take_rotations(model: HookedTransformer, rotary_emb: nn.Module) -> None:
    """Every layer takes the decoder's own table of rotations, now and when it needs a longer one.

    TransformerLens computes the angles in another order; the rounding grows with the position, and at
    position 2,000 moved logits by 2e-4 where the decoder's own table leaves 1e-5. The layers share one
    table; each of its own was 50 MB in a core of 24 layers at 3,000 positions.
    """
    cfg, rotations = model.cfg, _Rotations(rotary_emb)
    length = min(cfg.n_ctx, model.blocks[0].attn.ROTARY_INITIAL_CACHE_SIZE)
    sin, cos = rotations(cfg.rotary_dim, length, dtype=cfg.dtype)
    for block in model.blocks:
        block.attn.calculate_sin_cos_rotary = rotations
        block.attn.rotary_sin, block.attn.rotary_cos = sin.to(cfg.device), cos.to(cfg.device)


class _Rotations:
    """TransformerLens's `calculate_sin_cos_rotary`, asked of a Hugging Face rotary embedding.

    Layers ask one after the other when they need a longer table: they get the same one.
    """

    def __init__(self, rotary_emb: Any) -> None:
        self.rotary_emb = rotary_emb
        self.last: tuple[Any, tuple[Tensor, Tensor]] = (None, (torch.empty(0), torch.empty(0)))

    def __call__(
        self, rotary_dim: int, n_ctx: int, base: float = 10000, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        key = (n_ctx, dtype, self.rotary_emb.inv_freq.device)
        if self.last[0] != key:
            # Runs with gradients will read it, also where it grows in a run of TransformerLens's generate.
            with torch.inference_mode(False), torch.no_grad():
                positions = torch.arange(n_ctx, device=key[2])[None]
                cos, sin = self.rotary_emb(torch.empty(0, dtype=dtype, device=key[2]), positions)
            self.last = key, (sin[0], cos[0])
        return self.last[1]


def _processed(cfg: HookedTransformerConfig, state_dict: dict[str, Tensor]) -> HookedTransformer:
    """A model with folded and centred weights of its own; `state_dict` is left as it is."""
    model = _construct(cfg, move_to_device=True)
    copies = {name: weight.clone() for name, weight in state_dict.items()}
    with torch.no_grad():
        model.load_and_process_state_dict(
            copies, fold_ln=True, center_writing_weights=False, center_unembed=True, fold_value_biases=True
        )
    return model


def _construct(cfg: HookedTransformerConfig, *, move_to_device: bool) -> HookedTransformer:
    with warnings.catch_warnings():
        # HookedTransformer announces its end in 4.0; that is not the user's business.
        warnings.simplefilter("ignore", DeprecationWarning)
        return HookedTransformer(cfg, move_to_device=move_to_device)


def _rotary_arguments(text_config: Any) -> dict[str, Any]:
    rope = dict(text_config.rope_parameters)
    if rope.get("rope_type") == "linear":
        scaling = {"rotary_scaling_factor": rope["factor"]}
    elif rope.get("rope_type") == "llama3":
        scaling = {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": rope["factor"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
        }
    else:
        scaling = {}
    return {"rotary_base": rope["rope_theta"], **scaling}


def _refuse_unknown_attributes(text_config: Any) -> None:
    """Raise for anything that could change the computation and is not handled here."""
    family = getattr(text_config, "model_type", None)
    if family not in DECODERS:
        raise LensplugError(f"a {family!r} decoder cannot be a HookedTransformer: it computes {', '.join(DECODERS)}.")
    defaults = type(text_config)().to_dict()
    unknown = {
        name: value
        for name, value in text_config.to_dict().items()
        if name not in HANDLED | HARMLESS and value is not None and (name not in defaults or value != defaults[name])
    }
    if getattr(text_config, "mlp_bias", False):
        unknown["mlp_bias"] = True  # HookedTransformer's gated MLP has no bias at its gate
    if text_config.hidden_act not in ("silu", "gelu", "relu"):
        unknown["hidden_act"] = text_config.hidden_act
    if set(getattr(text_config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        unknown["layer_types"] = text_config.layer_types
    unknown |= _unknown_rotary(text_config)
    if unknown:
        listed = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
        raise LensplugError(
            f"the {family} core has configuration attributes that a HookedTransformer is not known to compute:"
            f" {listed}."
            " If you know them to be harmless, delete them from the configuration and wrap again; lens.check(inputs)"
            " then shows whether the logits agree."
        )


def _unknown_rotary(text_config: Any) -> dict[str, Any]:
    rope = dict(text_config.rope_parameters)
    kind = rope.pop("rope_type", "default")
    rope = {key: value for key, value in rope.items() if key != "type"}  # the old name of rope_type
    if kind not in ROPE_KEYS or set(rope) - ROPE_KEYS[kind]:
        return {"rope_parameters": dict(text_config.rope_parameters)}
    if kind == "linear" and sliding_windows(text_config):
        return {"sliding_window together with linear rotary scaling": text_config.sliding_window}
    return {}
