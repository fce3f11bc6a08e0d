"""The front door: `load` a model by name or folder, or `wrap` one that is in memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from lensplug import audio_llama as audio_llama  # registers the model with transformers' Auto classes
from lensplug import engines, parity
from lensplug.arguments import checked
from lensplug.core import LanguageCore
from lensplug.errors import LensplugError
from lensplug.lens import MultimodalLens
from lensplug.patches.unbridged import is_bridge, is_bridged, unbridged
from lensplug.public_names import public_name
from lensplug.seam import run_to_seam
from lensplug.turns import Turns, refuse_training


@checked
def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    engine: str = "auto",
    process_weights: bool = False,
    check: bool = True,
    **kwargs: Any,
) -> MultimodalLens:
    """Load a multimodal model and its processor, and wrap its language core.

        lens = lensplug.load("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", device="cuda", dtype="bfloat16")

    Args:
        name: A model of the Hugging Face hub, or a folder that `save_pretrained` wrote.
        device: Where to; "cuda" if there is one, else "cpu", if not given.
        dtype: Of the weights; "auto" is what the checkpoint says. fp16 is not safe for every model in
            TransformerLens's attention: `lens.check` counts logits that are not finite.
        engine: See `wrap`.
        process_weights: See `wrap`.
        check: See `wrap`.
        **kwargs: For `from_pretrained`, such as `revision` or `local_files_only`.

    Raises:
        LensplugError: If nothing is found under that name, or the model cannot be wrapped exactly.
    """
    is_path = isinstance(name, Path) or str(name).startswith(("/", ".", "~")) or str(name).count("/") > 1
    if is_path and not Path(name).is_dir():
        raise LensplugError(
            f"{str(name)!r} could not be loaded: there is no such folder. (Expected one that save_pretrained wrote, or"
            " a model of the Hugging Face hub, such as 'llava-hf/llava-onevision-qwen2-0.5b-ov-hf'.)"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        config = transformers.AutoConfig.from_pretrained(name, **kwargs)
        architecture = (config.architectures or [None])[0]
        # The class that the checkpoint names; for one that registers itself (audio-LLaMA), as it is registered.
        model_class = getattr(transformers, architecture or "", None) or transformers.AutoModelForMultimodalLM
        with torch.inference_mode(False):  # weights made in it never take part in gradients
            hf_model = model_class.from_pretrained(name, dtype=dtype, **kwargs)
        processor = transformers.AutoProcessor.from_pretrained(name, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        raise LensplugError(
            f"{str(name)!r} could not be loaded: {error} (Expected a model of the Hugging Face hub, or a folder with"
            " config.json, weights and processor files.)"
        ) from error
    hf_model = hf_model.to(device).eval()
    return wrap(hf_model, processor, engine=engine, process_weights=process_weights, check=check)


@checked
def wrap(
    hf_model: Any, processor: Any = None, *, engine: str = "auto", process_weights: bool = False, check: bool = True
) -> MultimodalLens:
    """Make the language core of a Hugging Face model a TransformerLens model.

    Args:
        hf_model: A multimodal model (or a plain language model), in evaluation mode, on one device. A
            TransformerBridge of TransformerLens's own (`boot_transformers`) will do: the model is made anew of copies
            of its modules, which share the weights, and the bridge stays as it is.
        processor: Its processor, for `lens.prepare`; a tokenizer for a plain language model. Of a bridge, what it has.
        engine: "hooked_transformer" (TransformerLens 3.x), "bridge" (a TransformerBridge, 3.9 and 4.x), or "auto":
            HookedTransformer where it is installed and computes the core exactly, else the bridge.
        process_weights: Fold the norms into the weights after them, centre the unembedding, fold the
            value biases, as TransformerLens does by default. The weights are then a copy; without it
            they are shared with `hf_model`. Logits are then centred at each position.
        check: Compare both on a short text, and refuse when they differ. `lens.check(inputs)` is the
            full comparison, on your input.

    Raises:
        LensplugError: If the model has no language core of its own, or one that cannot be wrapped
            exactly; what stands in the way is named.
    """
    _refuse_other_models(hf_model)
    if is_bridge(hf_model) and processor is None:
        processor = getattr(hf_model, "processor", None) or hf_model.tokenizer
    if is_bridge(hf_model) or is_bridged(hf_model):
        hf_model = unbridged(hf_model)
    core = LanguageCore.of(hf_model)
    refuse_training(hf_model, "model")
    tokenizer = getattr(processor, "tokenizer", processor)
    name, model = engines.build(core, engine=engine, tokenizer=tokenizer, process_weights=process_weights)
    Turns(model, core.decoder.config).apply()
    lens = MultimodalLens(hf_model, processor, core, model, engine=name, process_weights=process_weights)
    if check:
        report = _short_check(lens)
        if not report.agrees:
            raise LensplugError(f"{report} wrap(..., check=False) gives the lens all the same, to look into.")
    return lens


def _refuse_other_models(model: Any) -> None:
    """What is no Hugging Face model, and may be taken for one."""
    if isinstance(model, MultimodalLens):
        raise LensplugError("this is a lens already: its model is lens.hf_model, wrapped as lens.model.")
    if isinstance(model, str | Path):
        raise LensplugError(f"lensplug.wrap takes a model in memory: lensplug.load({str(model)!r}) loads one by name.")
    if any(kind.__name__ == "HookedRootModule" for kind in type(model).__mro__) and not is_bridge(model):
        name = getattr(getattr(model, "cfg", None), "model_name", None) or "name"
        raise LensplugError(
            f"a {type(model).__name__} has no Hugging Face model any more, which a lens runs and checks against: wrap"
            f" that, lensplug.wrap(AutoModelForCausalLM.from_pretrained({public_name(name)!r}), tokenizer). Analyses"
            " read its caches as they are, logits, cache = model.run_with_cache(tokens), analysis.logit_lens(cache);"
            " and lensplug.patches work on it."
        )


def _short_check(lens: MultimodalLens) -> parity.ParityReport:
    """A dozen tokens of text: enough to see a wrong weight, norm, rotation or scale."""
    rows = lens.core.decoder.embed_tokens.weight.shape[0]
    taken = set(lens.core.placeholder_ids.values())
    ids = [token for token in torch.linspace(0, rows - 1, 16).long().tolist() if token not in taken]
    ids = ids[: min(12, lens.model.cfg.n_ctx)]
    tokens = torch.tensor([ids], device=lens.core.device)
    model_inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    seam = run_to_seam(lens.hf_model, lens.core, model_inputs)
    wrapped_input = SimpleNamespace(
        embeds=seam.embeds, tokens=tokens, attention_mask=seam.attention_mask, decoder_inputs=seam.beside
    )
    return parity.compare(
        lens.hf_model,
        lens.core,
        lens.model,
        model_inputs=model_inputs,
        wrapped_input=wrapped_input,
        attention_mask=seam.attention_mask,
        centered=lens.process_weights,
        engine=lens.engine,
        whole_patterns=True,
    )
