"""Checks of the arguments of `lensplug.wrap`: mistaken models and processors are refused first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from lensplug.errors import LensplugError
from lensplug.hf.language_core import LanguageCore
from lensplug.lens import MultimodalLens
from lensplug.patches.bridge.unbridged import is_bridge
from lensplug.patches.placement import is_loaded, is_placed
from lensplug.provenance.public_names import public_name


def refuse_other_models(model: Any, processor: Any) -> None:
    """Raise for what is no Hugging Face model, and may be taken for one.

    Raises:
        LensplugError: Then, with what to type.
    """
    if isinstance(model, ProcessorMixin | PreTrainedTokenizerBase) or isinstance(processor, nn.Module):
        raise LensplugError(
            f"the first argument is a {_kind(model)}, the second a {_kind(processor)}: the model comes first,"
            " lensplug.wrap(model, processor)."
        )
    if isinstance(model, type):
        raise LensplugError(
            f"{model.__name__} is a class, and no model yet: lensplug.wrap({model.__name__}.from_pretrained(name),"
            " processor), or lensplug.load(name)."
        )
    if isinstance(model, MultimodalLens):
        raise LensplugError("this is a lens already: its model is lens.hf_model, wrapped as lens.model.")
    if isinstance(model, str | Path):
        raise LensplugError(f"lensplug.wrap takes a model in memory: lensplug.load({str(model)!r}) loads one by name.")
    if isinstance(model, Mapping):
        raise LensplugError(
            "this is a state dict, weights without their model: build the model of its configuration, call"
            " model.load_state_dict(state_dict), and wrap that."
        )
    if isinstance(model, PreTrainedConfig):
        raise LensplugError(f"this is a configuration, {_kind(model)}: wrap a model that has weights.")
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        raise LensplugError(f"a {_kind(model)} holds a model: lensplug.wrap(it.model, it.processor or it.tokenizer).")
    if any(kind.__name__ == "HookedRootModule" for kind in type(model).__mro__) and not is_bridge(model):
        name = getattr(getattr(model, "cfg", None), "model_name", None) or "name"
        raise LensplugError(
            f"a {type(model).__name__} has no Hugging Face model any more, which a lens runs and checks against: wrap"
            f" that, lensplug.wrap(AutoModelForCausalLM.from_pretrained({public_name(name)!r}), tokenizer). Analyses"
            " read its caches as they are, logits, cache = model.run_with_cache(tokens), analysis.logit_lens(cache);"
            " and lensplug.patches work on it."
        )


def refuse_not_loaded(model: Any) -> None:
    """Raise if weights of any part, encoders too, are neither in memory nor loaded when they are needed.

    Raises:
        LensplugError: Then.
    """
    parts = dict(model.named_modules())
    for name, weight in model.named_parameters():
        if weight.is_meta and not is_loaded(parts[name.rpartition(".")[0]]):
            raise LensplugError(
                f"{_kind(model)} is on the meta device: its weights are not loaded ({name}), and no hook of"
                " accelerate's loads them when they are needed. Load them with from_pretrained; device_map and"
                " offload_folder may split and offload them."
            )
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1 and not any(is_placed(part) for part in parts.values()):
        raise LensplugError(
            f"{_kind(model)} is on several devices ({', '.join(sorted(places))}), and has lost the hooks that move"
            " activations between them: load it again, and wrap it as it is."
        )


def refuse_other_processors(processor: Any, core: LanguageCore) -> None:
    """Raise for what is no processor of this model.

    Raises:
        LensplugError: Then, with what to type.
    """
    if processor is None:
        return
    if isinstance(processor, str | Path | type):
        received = repr(str(processor)) if not isinstance(processor, type) else f"the class {processor.__name__}"
        raise LensplugError(f"processor is {received}, expected one in memory: AutoProcessor.from_pretrained(name).")
    tokenizer = getattr(processor, "tokenizer", processor)
    if not callable(getattr(tokenizer, "decode", None)) or not callable(tokenizer):
        raise LensplugError(
            f"a {_kind(processor)} has no tokenizer: give the whole processor, AutoProcessor.from_pretrained(name), or"
            " a tokenizer to a model of words alone."
        )
    if tokenizer is processor and core.placeholder_ids:
        raise LensplugError(
            f"a {_kind(processor)} reads words, and {core.name} takes {' and '.join(core.placeholder_ids)} as well:"
            " give its whole processor, AutoProcessor.from_pretrained(name), or none, where you run your own and use"
            " lens.encode."
        )
    for kind, expected in core.placeholder_ids.items():
        text = getattr(processor, f"{kind}_token", None)
        written = _placeholders(processor, tokenizer, kind)
        if written and expected not in written:
            raise LensplugError(
                f"this processor is of another model: its {kind} placeholder is the token {written[0]}"
                f" ({text}), that of"
                f" {core.name} is {expected}. Give AutoProcessor.from_pretrained(name) of the same name."
            )


WRITTEN_INSTEAD = {("Ovis2Processor", "image"): "<IMG_ATOM>"}
"""(processor, medium) -> the word that it writes for its placeholder, where no attribute says it."""


def _placeholders(processor: Any, tokenizer: Any, kind: str) -> list[int]:
    """The tokens that a processor may write for a medium.

    Gemma 3's own placeholder is the one that a prompt has; what it writes in its place is its tokenizer's. Ovis2 writes
    a word of its own.
    """
    text = getattr(processor, f"{kind}_token", None)
    of_text = tokenizer.convert_tokens_to_ids(text) if isinstance(text, str) else None
    single = getattr(processor, f"{kind}_token_id", None)
    several = getattr(processor, f"{kind}_token_ids", None) or ()
    candidates = [of_text if single is None else single, *several, getattr(tokenizer, f"{kind}_token_id", None)]
    if word := WRITTEN_INSTEAD.get((type(processor).__name__, kind)):
        candidates.append(tokenizer.convert_tokens_to_ids(word))
    return [token for token in candidates if isinstance(token, int)]


def _kind(value: Any) -> str:
    return type(value).__name__
