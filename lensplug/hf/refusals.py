"""Why a model has no language core: one place decides, and each reason says what to use instead.

A core is a decoder that receives embeddings of words and media in one sequence, and a head over the words behind it.
What has none is, in this order, one of

1. several models in one, of which one is such a model (the whole of Qwen2.5-Omni);
2. a model that makes sound, whose logits are no words;
3. a model that refines all words of an answer at once (diffusion), an encoder-decoder, or a decoder into which media
   enter by cross-attention: no position is the picture's;
4. an encoder, or a model that pools or contrasts;
5. the base of such a model, without its head;
6. a decoder of a form that is not known here.
"""

from __future__ import annotations

import re
from inspect import signature
from typing import Any

from torch import Tensor, nn

from lensplug.errors import LensplugError
from lensplug.hf.own_parts import own_modules

INSTEAD = (
    "Instead: lensplug.cache_from_attentions(outputs.{attentions}) of a run with eager attention and"
    " output_attentions=True."
)
CROSS_ATTENTION = re.compile(r"cross_?att|encoder_attn|encoder_decoder_attention|EncDecAttention", re.I)
"""How modules are called by which a decoder attends to what is not among its positions."""
SOUND = ("TEXT_TO_WAVEFORM", "TEXT_TO_SPECTROGRAM")
"""The maps of transformers that list models that make sound."""


def decoder_and_head(hf_model: Any) -> tuple[Any, Any]:
    """The decoder that embeddings go into and the head behind it, of a whole model.

    `get_decoder` gives the causal language model in some families (Llama 4, BLIP-2): the decoder is then within it.

    Raises:
        LensplugError: If it has none: why, and what to use instead.
    """
    _refuse_no_model(hf_model)
    _refuse_several_models(hf_model)
    _refuse_sound(hf_model)
    _refuse_diffusion(hf_model)
    outer = hf_model.get_decoder()
    decoder, head = outer, hf_model.get_output_embeddings()
    _refuse_cross_attention(hf_model, decoder)
    while isinstance(decoder, nn.Module) and decoder is not hf_model and not hasattr(decoder, "layers"):
        head = head if head is not None else getattr(decoder, "lm_head", None)
        decoder = next((part for name in ("model", "decoder") if (part := getattr(decoder, name, None))), None)
    if decoder is None or decoder is hf_model:
        raise LensplugError(_no_decoder(hf_model, outer))
    if head is None:
        raise LensplugError(_no_head(hf_model))
    embedding = getattr(decoder, "embed_tokens", None)
    if not isinstance(embedding, nn.Module):
        raise LensplugError(
            f"the decoder of {_name(hf_model)}, a {type(decoder).__name__}, has no embed_tokens, where decoders of the"
            f" form that lensplug knows embed words (it has {_children(decoder)})."
            f" {INSTEAD.format(attentions='attentions')}{_bridge_of(_name(hf_model))}"
        )
    if not isinstance(getattr(embedding, "weight", None), Tensor):
        raise LensplugError(
            f"the decoder of {_name(hf_model)} embeds its positions by a {type(embedding).__name__} (with"
            f" {_children(embedding)}), expected one table with a row for each word: of a position that is the sum of"
            " several embeddings (a word, codes of sound) no word can be told."
            f" {INSTEAD.format(attentions='attentions')}{_bridge_of(_name(hf_model))}"
        )
    return decoder, head


def _refuse_no_model(hf_model: Any) -> None:
    for method in ("get_decoder", "get_output_embeddings"):
        if not hasattr(hf_model, method):
            raise LensplugError(
                f"{_name(hf_model)} has no {method}(): lensplug.wrap takes a Hugging Face model for generation, such as"
                " LlavaOnevisionForConditionalGeneration or LlamaForCausalLM."
            )


def _refuse_several_models(hf_model: Any) -> None:
    """A whole whose parts generate by themselves; the one that writes words is the one to take."""
    if hf_model.get_decoder() is not hf_model or hf_model.get_output_embeddings() is not None:
        return
    for name, part in hf_model.named_children():
        if _has_core(part):
            raise LensplugError(
                f"{_name(hf_model)} is several models in one ({', '.join(dict(hf_model.named_children()))}): wrap the"
                f" one that reads and writes words, lensplug.wrap(model.{name}, processor)."
            )


def _has_core(part: Any) -> bool:
    if not hasattr(part, "get_decoder") or not hasattr(part, "get_output_embeddings"):
        return False
    decoder = part.get_decoder()
    return hasattr(decoder, "layers") and decoder is not part and part.get_output_embeddings() is not None


def _refuse_sound(hf_model: Any) -> None:
    listed = {name for kind in SOUND for name in _map(kind).values()}
    modalities = getattr(hf_model, "output_modalities", None) or ("text",)
    speaks = _name(hf_model) in listed and not _has_core(hf_model)
    if speaks or "text" not in modalities:
        raise LensplugError(
            f"{_name(hf_model)} makes sound: it predicts frames or codes of sound and no words, and so there are no"
            " logits of words to explain. lensplug.wrap takes models that answer in words. "
            + INSTEAD.format(attentions="attentions")
        )


def _refuse_diffusion(hf_model: Any) -> None:
    if "self_conditioning_logits" in signature(type(hf_model).forward).parameters:
        raise LensplugError(
            f"{_name(hf_model)} makes text by diffusion: an encoder reads the prompt, and the decoder refines a canvas"
            " of words that all see each other, from the encoder's keys and values. None of its positions is the"
            " prompt's or a picture's, and its logits are of no next word."
        )


def _refuse_cross_attention(hf_model: Any, decoder: Any) -> None:
    config, name = hf_model.config, _name(hf_model)
    text_config = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False) or getattr(text_config, "is_encoder_decoder", False):
        raise LensplugError(
            f"{name} is an encoder-decoder: an encoder reads the input, and its output has no positions among the words"
            " of the decoder. lensplug.wrap takes decoders that receive words and media in one sequence."
            f" {INSTEAD.format(attentions='encoder_attentions')} Its decoder_attentions are read in the same way."
            + _bridge_of(name)
        )
    if crossing := _cross_attention(decoder):
        raise LensplugError(
            f"the media of {name} enter its decoder by cross-attention ({crossing}), beside the words, and have no"
            " positions among them: a core of embeddings would run the words alone. lensplug.wrap takes models that put"
            " media among the words (LLaVA, Qwen-VL, Gemma 3)."
            f" {INSTEAD.format(attentions='attentions')}{_bridge_of(name)}"
        )


def _cross_attention(decoder: Any) -> str | None:
    """Where a decoder's own modules attend elsewhere; None: nowhere."""
    if not isinstance(decoder, nn.Module):
        return None
    named = own_modules(decoder)
    places = [place for place, of in named if CROSS_ATTENTION.search(f"{place} {type(of).__name__}")]
    layers = sorted({int(number[1]) for place in places if (number := re.search(r"(?:^|\.)layers?\.(\d+)", place))})
    if layers:
        return f"in layers {', '.join(map(str, layers))}"
    return f"in its {places[0].partition('.')[0]}" if places else None


def _bridge_of(class_name: str) -> str:
    """What to say where TransformerLens bridges the whole model itself."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    told = " TransformerLens itself has an adapter for the whole: TransformerBridge.boot_transformers(name)."
    return told if class_name in SUPPORTED_ARCHITECTURES else ""


def _no_decoder(hf_model: Any, outer: Any) -> str:
    name = _name(hf_model)
    if whole := _whole(hf_model):
        return f"{name} has no head, and so no logits of words: give the whole model, {whole}.from_pretrained(name)."
    if not _generates(hf_model):
        return (
            f"{name} does not generate text: it has no decoder with a head over words (an encoder, or a model that"
            f" pools, contrasts or acts). {INSTEAD.format(attentions='attentions')}"
        )
    return (
        f"{name} has no decoder of the form that lensplug knows, a module whose blocks are its `layers`: get_decoder()"
        f" gave a {type(outer).__name__} of {_children(outer)}. {INSTEAD.format(attentions='attentions')}"
    )


def _children(module: Any) -> str:
    return ", ".join(part for part, _ in module.named_children()) if isinstance(module, nn.Module) else "nothing"


def _no_head(hf_model: Any) -> str:
    name = _name(hf_model)
    whole = _whole(hf_model)
    advice = (
        f"give the whole model, {whole}.from_pretrained(name)." if whole else INSTEAD.format(attentions="attentions")
    )
    return f"{name} has no output embeddings, and so no logits of words: {advice}"


def _whole(hf_model: Any) -> str | None:
    """The class for generation of a base model's family; None for a family of encoders."""
    model_type = hf_model.config.model_type
    if _generates(hf_model) or model_type in _map("MASKED_LM"):
        return None
    for kind in ("MULTIMODAL_LM", "IMAGE_TEXT_TO_TEXT", "CAUSAL_LM"):
        if named := _map(kind).get(model_type):
            whole = named if isinstance(named, str) else named[0]
            return whole if whole != _name(hf_model) else None
    return None


def _map(kind: str) -> dict[str, Any]:
    """`model_type` -> the class, or the classes, that transformers lists for a purpose."""
    from transformers.models.auto import modeling_auto  # here: reading a cache needs no transformers

    return dict(getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES", {}))


def _generates(hf_model: Any) -> bool:
    can_generate = getattr(hf_model, "can_generate", None)
    return bool(can_generate and can_generate())


def _name(hf_model: Any) -> str:
    return type(hf_model).__name__
