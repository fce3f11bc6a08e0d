"""`load` a model by name or folder, or `wrap` one that is in memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from lensplug import audio_llama as audio_llama  # registers the model with transformers' Auto classes
from lensplug import engines
from lensplug.errors import LensplugError
from lensplug.hf.asked import asked_of
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.lead import Lead, lead_of
from lensplug.hf.run_lock import Turns, refuse_training
from lensplug.hf.seam import run_to_seam
from lensplug.lens import MultimodalLens
from lensplug.loading import folder as load_folder
from lensplug.loading import options as load_options
from lensplug.loading.proved import standing_of
from lensplug.loading.wrap_arguments import refuse_not_loaded, refuse_other_models, refuse_other_processors
from lensplug.model_files import folder_checks
from lensplug.model_files.failures import failures_explained
from lensplug.model_files.folder_checks import CONFIG
from lensplug.model_files.model_class import model_class, refuse_other_size
from lensplug.model_files.remote_code import nobody_is_asked
from lensplug.patches.adapters import without_wrapper
from lensplug.patches.bridge.own_layers import is_packed, kinds_of, own_layers
from lensplug.patches.bridge.unbridged import is_bridge, is_bridged, unbridged
from lensplug.running import parity
from lensplug.validation.arguments import checked


@checked
def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: load_options.Dtype = "auto",
    engine: engines.Engine = "auto",
    process_weights: bool = False,
    check: bool = True,
    prove: bool | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> MultimodalLens:
    """Load a multimodal model and its processor, and wrap its language core.

        lens = lensplug.load("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", device="cuda", dtype="bfloat16")

    Args:
        name: A model of the Hugging Face hub, or a folder that `save_pretrained` wrote.
        device: Where to; "cuda" if there is one, else "cpu", if not given.
        dtype: The dtype of the weights; "auto" is that of the checkpoint. fp16 is not safe for every model in
            TransformerLens's attention: `lens.check` counts logits that are not finite.
        engine: See `wrap`.
        process_weights: See `wrap`.
        check: See `wrap`.
        prove: See `wrap`.
        trust_remote_code: Run the code that comes with the model, with all that you may do. Read it first, and give
            the `revision` that you have read. The lens is refused where it computes something else (`check`).
        **kwargs: For `from_pretrained`, such as `revision` or `local_files_only`. What would split, offload or quantise
            weights is refused.

    Raises:
        LensplugError: If nothing is found under that name, a file is broken or asks for what is not given (the file is
            named), the device is not there, an option is none that can be followed, or the model cannot be wrapped
            exactly.
    """
    dtype = load_options.known_dtype(dtype)
    device, where, of_weights = load_options.options(kwargs, device)
    path = load_folder.found(name, subfolder=where.get("subfolder", ""), gguf_file=where.get("gguf_file"))
    code = {"trust_remote_code": trust_remote_code}
    with failures_explained(str(name)) as reading, nobody_is_asked():
        reading(CONFIG)
        folder = folder_checks.local(path, where)
        if folder is not None:
            folder_checks.refuse_broken(folder, str(name))
        if not Path(path).is_dir():
            where = {**where, "force_download": False}  # they are fetched
        config = transformers.AutoConfig.from_pretrained(path, **code, **where)
        load_options.refuse_quantised(config, str(name))
        load_folder.refuse_no_processor(path, config)
        hf_class = model_class(config, str(name), **code)
        reading("its processor's or tokenizer's files")
        processor = transformers.AutoProcessor.from_pretrained(path, **code, **where)
        reading("its weight files")
        folder_checks.fetch_weights(path, where, of_weights)
        weights = folder_checks.whole_weights(folder, {**where, **of_weights})
        reading("the model that its config.json describes")
        refuse_other_size(hf_class, config, weights, str(name), **code)
        reading(", ".join(weights.names[:3]) if weights is not None else "its weight files")
        with torch.inference_mode(False):  # weights made in it never take part in gradients
            hf_model, report = hf_class.from_pretrained(
                path, dtype=dtype, output_loading_info=True, **code, **where, **of_weights
            )
    if missing := sorted(report["missing_keys"]):
        raise LensplugError(
            f"the weights of {str(name)!r} lack {len(missing)} of a {type(hf_model).__name__}'s ({missing[0]}, ...),"
            " which would be random numbers: are these the weights of this configuration?"
        )
    hf_model = hf_model.to(device).eval()
    return wrap(hf_model, processor, engine=engine, process_weights=process_weights, check=check, prove=prove)


@checked
def wrap(
    hf_model: Any,
    processor: Any = None,
    *,
    engine: engines.Engine = "auto",
    process_weights: bool = False,
    check: bool = True,
    prove: bool | None = None,
) -> MultimodalLens:
    """Make the language core of a Hugging Face model a TransformerLens model.

    Args:
        hf_model: A multimodal model (or a plain language model), in evaluation mode, on one device. A
            TransformerBridge of TransformerLens's own (`boot_transformers`) is accepted: the model is rebuilt from
            copies of its modules, which share the weights, and the bridge stays as it is.
        processor: Its processor, for `lens.prepare`; a tokenizer for a plain language model. Of a bridge, what it has.
        engine: "hooked_transformer" (TransformerLens 3.x), "bridge" (a TransformerBridge, 3.9 and 4.x), or "auto":
            HookedTransformer where it is installed and computes the core exactly, else the bridge.
        process_weights: Fold the norms into the weights after them, centre the unembedding, fold the
            value biases, as TransformerLens does by default. The weights are then a copy; without it
            they are shared with `hf_model`. Logits are then centred at each position.
        check: Compare both on a short text, and refuse when they differ. `lens.check(inputs)` is the
            full comparison, on your input.
        prove: Prove the wrapped core against this very model before it is returned: streams, patterns, edits,
            gradients, generation (`lens.proof`). None proves what lensplug's own tests do not; True proves all, False
            nothing, and `lens.proof` says so.

    Raises:
        LensplugError: If the model has no language core of its own, or one that cannot be wrapped
            exactly; the reason is named. Of a proof that failed, the first check that did.
    """
    refuse_other_models(hf_model, processor)
    if prove and process_weights:
        raise LensplugError(
            "a proof compares with the weights as they are, and process_weights changes them: leave one of them out."
        )
    given_processor = processor
    if is_bridge(hf_model) and processor is None:
        processor = getattr(hf_model, "processor", None) or hf_model.tokenizer
    if is_bridge(hf_model) or is_bridged(hf_model):
        hf_model = unbridged(hf_model)
    hf_model = without_wrapper(hf_model)
    core = LanguageCore.of(hf_model)
    refuse_not_loaded(hf_model)
    is_tried = engines.is_tried(core)
    lead = lead_of(hf_model, core, processor) if is_tried or check or prove else Lead()
    if is_tried:
        core = asked_of(hf_model, core, lead)
    refuse_other_processors(given_processor, core)  # a bridge may have less than its model's processor
    refuse_training(hf_model, "model")
    tokenizer = getattr(processor, "tokenizer", processor)
    name, model = engines.build(core, engine=engine, tokenizer=tokenizer, process_weights=process_weights)
    Turns(model, core.decoder.config).apply()
    lens = MultimodalLens(hf_model, processor, core, model, engine=name, process_weights=process_weights)
    if check:
        report = _short_check(lens, lead)
        if not report.agrees:
            raise LensplugError(
                f"{report}{_why(core)} wrap(..., check=False) gives the lens all the same, to look into."
            )
    standing_of(lens, prove, lead)
    return lens


def _why(core: LanguageCore) -> str:
    """What may explain a difference of a core with quantised layers."""
    packed = [layer for layer in (*own_layers(core.decoder), *own_layers(core.head)) if is_packed(layer)]
    if not packed:
        return ""
    return (
        f" Its quantised layers ({kinds_of(packed)}) may round what they are given to a few bits, where a difference of"
        " 1e-7 becomes one of a whole step: see whether the model differs as much from itself, with eager attention and"
        " with SDPA."
    )


def _short_check(lens: MultimodalLens, lead: Lead) -> parity.ParityReport:
    """A dozen tokens of text: enough to see a wrong weight, norm, rotation or scale."""
    rows = lens.core.decoder.embed_tokens.weight.shape[0]
    placeholder_ids = set(lens.core.placeholder_ids.values())
    ids = [token for token in torch.linspace(0, rows - 1, 16).long().tolist() if token not in placeholder_ids]
    ids = ids[: min(12, lens.model.cfg.n_ctx)]
    model_inputs = lead.before([ids], lens.core)
    seam = run_to_seam(lens.hf_model, lens.core, model_inputs)
    wrapped_input = SimpleNamespace(
        embeds=seam.embeds,
        tokens=model_inputs["input_ids"],
        attention_mask=seam.attention_mask,
        decoder_inputs=seam.beside,
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
