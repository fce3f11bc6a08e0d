"""The gap: a TransformerBridge of a multimodal model shows the placeholders' embeddings, and modifies the model.

`boot_transformers` wants a name, a tokenizer from the hub and a configuration it knows; the bridge of a full
multimodal model shows in `hook_embed` what the image has since replaced; and bridging puts the bridge's components into
the Hugging Face model, for good: its state dict gets other names, `save_pretrained` and `output_attentions` fail, and a
second bridge around it is silently wrong in 3.9.

`build_language_bridge` bridges the language core alone: a causal language model (LlamaForCausalLM, ...) around *copies
of the modules* of decoder and head, whose parameters are the same memory. No weight is copied, nothing is looked up,
and the model that the core came from never notices.

Checked against transformer-lens 3.9.0 and 4.3.0, transformers 5.23 and 5.24.
"""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import torch
import transformers
from torch import nn

from lensplug.patches.bridge.own_layers import refuse_own_layers, taken_as_they_are
from lensplug.patches.core_parts import CoreParts, has_three_part_positions, mask_form
from lensplug.patches.errors import LensplugError
from lensplug.patches.placement import device_of
from lensplug.patches.sliding_windows import sliding_windows

CORES = {
    "llama": ("LlamaModel", "LlamaForCausalLM"),
    "qwen2": ("Qwen2Model", "Qwen2ForCausalLM"),
    "mistral": ("MistralModel", "MistralForCausalLM"),
    "qwen3": ("Qwen3Model", "Qwen3ForCausalLM"),
    "qwen3_moe": ("Qwen3MoeModel", "Qwen3MoeForCausalLM"),
    "mixtral": ("MixtralModel", "MixtralForCausalLM"),
    "gemma": ("GemmaModel", "GemmaForCausalLM"),
    "gemma2": ("Gemma2Model", "Gemma2ForCausalLM"),
    "gemma3_text": ("Gemma3TextModel", "Gemma3ForCausalLM"),
    # These make their three-part positions one rotation before the blocks, which are Qwen2's.
    "qwen2_vl_text": ("Qwen2VLTextModel", "Qwen2ForCausalLM"),
    "qwen2_5_vl_text": ("Qwen2_5_VLTextModel", "Qwen2ForCausalLM"),
    "qwen2_5_omni_text": ("Qwen2_5OmniThinkerTextModel", "Qwen2ForCausalLM"),
    "qwen3_vl_text": ("Qwen3VLTextModel", "Qwen3ForCausalLM"),
    "qwen3_vl_moe_text": ("Qwen3VLMoeTextModel", "Qwen3MoeForCausalLM"),
}
"""`model_type` of a decoder's configuration -> the decoder, and the language model that a bridge is built around."""

TRIED_AND_TESTED = (
    "Ministral3Model",
    "Phi3Model",
    "SmolLM3Model",
    "GlmModel",
    "StableLmModel",
    "Ernie4_5Model",
    "Cohere2Model",
    "GraniteModel",
    "Qwen2MoeModel",
    "Glm4vTextModel",
)
"""Decoders outside the table that lensplug's tests cover all the same, as they are tried."""

PRINTED_MODULE = re.compile(r"(\w+)\(\n(?:[ \t].*\n)*\)")
"""A module as torch prints it, over many lines; its first word is its class."""
UNTOLD = {"norm_topk_prob": True, "output_router_logits": False}
"""What a language model reads from its configuration as it is made, where a decoder's own does not say it.

The layers made from it are put aside: the decoder's take their place."""


def build_language_bridge(
    core: CoreParts,
    *,
    tokenizer: Any = None,
    process_weights: bool = False,
    model_name: str = "",
) -> Any:
    """A TransformerBridge that computes what `head(decoder(...))` computes.

    Args:
        core: Decoder, head and configuration; the decoder one of `CORES`.
        tokenizer: Kept as it is (TransformerLens would make another).
        process_weights: Fold the norms, centre the unembedding, fold the value biases, in a copy of the weights.
        model_name: For `cfg.model_name`.

    Raises:
        LensplugError: If the decoder is another class, or a bridge's already.
    """
    if process_weights:
        refuse_own_layers(core, "processed weights are a copy of plain matrices: leave process_weights out")
    if in_table(core):
        model = _known(core, process_weights, model_name or core.text_config.model_type)
    else:
        model = _tried(core, process_weights, model_name or core.text_config.model_type)
    # Hugging Face's own attention is not run, and its weights are not there to be returned.
    model.adapter.supports_hf_output_attentions = False
    model.cfg.device = str(device_of(core.decoder.embed_tokens))
    model.cfg.d_vocab, model.cfg.d_vocab_out = core.decoder.embed_tokens.weight.shape[0], core.head.out_features
    model.cfg.default_prepend_bos = False  # the chat template decides what a prompt begins with
    # The bridge leaves sliding windows to its model; analyses read them.
    for name, value in sliding_windows(core.text_config).items():
        setattr(model.cfg, name, value)
    model.tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = tokenizer is not None and len(tokenizer("")["input_ids"]) > 0
    if process_weights:
        _process(model)
    for module in model.modules() if in_table(core) else ():
        # The other way computes norms twice, and gives hooks on the first a gradient of zero.
        if hasattr(type(module), "_python_norm_forward"):
            module.use_native_layernorm_autograd = False
    return model


def in_table(core: CoreParts) -> bool:
    """Whether the decoder is one that lensplug's tests cover; another is tried, by the parts that it has."""
    known = CORES.get(core.model_type or "")
    return known is not None and known[0] == type(core.decoder).__name__


def is_tested(core: CoreParts) -> bool:
    """Whether lensplug's tests cover the decoder, by the table or as it is tried."""
    return in_table(core) or type(core.decoder).__name__ in TRIED_AND_TESTED


def _known(core: CoreParts, process_weights: bool, model_name: str) -> Any:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    shell = causal_shell(core, share=not process_weights)
    return build_bridge_from_module(shell, type(shell).__name__, hf_config=shell.config, model_name=model_name)


def _tried(core: CoreParts, process_weights: bool, model_name: str) -> Any:
    from lensplug.patches.bridge.usual_parts import build_tried_bridge

    if process_weights:
        raise LensplugError(
            f"process_weights folds weights of tested families alone ({', '.join(CORES)}), and the core is"
            f" {type(core.decoder).__name__}: leave process_weights out."
        )
    _refuse_bridged(core.decoder)
    asked = getattr(core, "asked", None)
    try:
        decoder, head = _copies(core, share=True)
        return build_tried_bridge(core, decoder, head, asked, model_name=model_name)
    except LensplugError:
        raise
    except Exception as error:  # any: it was not written for this
        said = " ".join(PRINTED_MODULE.sub(r"\1", str(error)).split())[:200]
        raise LensplugError(
            f"{type(core.decoder).__name__} cannot be bridged by what its layers have ({type(error).__name__}: {said})."
        ) from error


def _copies(core: CoreParts, *, share: bool) -> list[nn.Module]:
    """Copies of decoder and head, whose configuration asks for the masks of SDPA."""
    dtype = core.decoder.embed_tokens.weight.dtype
    copies = [shared_copy(module, share=share, dtype=dtype) for module in (core.decoder, core.head)]
    config: Any = copies[0].config
    # The bridge computes attention itself; what SDPA decides is the mask: none where it is plainly causal, else a
    # byte for each pair of positions in place of a number.
    config._attn_implementation = mask_form(core.decoder)
    config.use_cache = False  # keys and values of a single pass are not used; generation requests them
    return copies


def causal_shell(core: CoreParts, *, share: bool = True) -> Any:
    """A causal language model around copies of a core's decoder and head that share their memory, or have their own.

    Raises:
        LensplugError: If the decoder is another class, or a bridge's already.
    """
    decoder, model_type = core.decoder, core.model_type
    if model_type is None or model_type not in CORES:
        raise LensplugError(f"a {model_type!r} decoder cannot be bridged exactly: known are {', '.join(CORES)}.")
    expected, architecture = CORES[model_type]
    if type(decoder).__name__ != expected:
        raise LensplugError(
            f"{type(decoder).__name__} with model_type {model_type!r} cannot be bridged: expected {expected}."
        )
    _refuse_bridged(decoder)
    _refuse_rotation_inside(decoder, core.text_config)
    copies = _copies(core, share=share)
    config: Any = copies[0].config
    for name, value in UNTOLD.items():
        if not hasattr(config, name):
            setattr(config, name, value)
    if not hasattr(config, "layer_types"):
        config.layer_types = ["full_attention"] * config.num_hidden_layers
    with torch.device("meta"):  # without memory
        shell = getattr(transformers, architecture)(config)
    shell.model, shell.lm_head = copies
    return shell.train(decoder.training)


def shared_copy(module: nn.Module, *, share: bool = True, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of a module whose parameters and buffers are the same memory, or with `share=False` its own.

    Parameters are new objects: a gradient that reaches one is not the other's. For `dtype` see `shared_memory`.
    """
    return copied(module, shared_memory(module, dtype) if share else {})


def shared_memory(module: nn.Module, dtype: torch.dtype | None = None) -> dict[int, Any]:
    """For `copied`: the replacements of each parameter and buffer of a module in a copy that shares their memory.

    Layers whose weight is no plain matrix are taken as they are, or with a dtype made `Readable` (`own_layers`).
    """
    shared: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        plain = type(parameter) is nn.Parameter
        new = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad) if plain else parameter
        shared[id(parameter)] = new
    return shared | {id(old): new for old, new in taken_as_they_are(module, dtype)}


def copied(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    """A deep copy in which what is `known`, by its id, is taken as it is; without hooks.

    Hooks were put on the original, and see what happens there. Those by which transformers records hidden states and
    attentions are added again when they are requested.
    """
    taken = {part for new in known.values() if isinstance(new, nn.Module) for part in new.modules()}
    new_module = copy.deepcopy(module, known)
    for part in new_module.modules():
        if part in taken:  # not a copy: its hooks are its owner's
            continue
        vars(part).pop("_output_capturing_hooks_installed", None)
        for name, hooks in vars(part).items():
            if name.endswith("_hooks") and isinstance(hooks, dict):
                hooks.clear()
    return new_module


def _refuse_bridged(decoder: nn.Module) -> None:
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    if any(isinstance(module, GeneralizedComponent) for module in decoder.modules()):
        raise LensplugError(
            f"there is a TransformerBridge around this {type(decoder).__name__} already, which has put its components"
            " into it: lensplug.wrap takes the bridge, or the whole model, and leaves them out."
        )


def _refuse_rotation_inside(decoder: Any, text_config: Any) -> None:
    """Before 5.17 transformers made one rotation of three parts inside each block, where a bridge takes it as made."""
    if not has_three_part_positions(decoder):
        return
    weight = decoder.embed_tokens.weight
    cos, _ = decoder.rotary_emb(weight[None, :1], torch.zeros(3, 1, 1, dtype=torch.long, device=weight.device))
    if cos.ndim != 3:
        raise LensplugError(
            f"transformers {transformers.__version__} makes the three-part rotation of {type(decoder).__name__} inside"
            " its blocks, which a bridge does not: pip install -U 'transformers>=5.17'."
        )


def _process(model: Any) -> None:
    if model.cfg.dtype not in (torch.float32, torch.float64):
        raise LensplugError(
            f"a bridge with processed weights is known for float32, the model is {model.cfg.dtype}: load it with"
            " dtype='float32', or leave process_weights out."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names that HookNames makes
        model.enable_compatibility_mode(disable_warnings=True, center_writing_weights=False)
