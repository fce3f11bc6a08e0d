"""What a model would take, from its configuration alone: nothing is downloaded but that, and no weight is made.

1. The model is made on the meta device, where tensors have shapes and no numbers: its own classes say how many
   parameters there are, and which are tied.
2. Quantised forms are counted as bitsandbytes keeps them: every linear layer but the head, in int8 with a scale (fp32)
   for each row, in 4 bits with one for each 64 numbers; the rest in bfloat16.
3. Its language core is wrapped there too, and the estimate of runs is `lens.estimate`'s.

When to use it: before loading, to choose a dtype, a device, and what to keep. When not: for a lens that exists,
`lens.estimate(inputs)` knows its inputs. Memory of the encoder, of allocators and of gradients is not in it.

    print(lensplug.estimate("Qwen/Qwen2.5-VL-72B-Instruct", tokens=3000))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from lensplug import audio_llama as audio_llama  # registers the model with transformers' Auto classes
from lensplug.engines import bridge
from lensplug.errors import LensplugError
from lensplug.hf.language_core import LanguageCore, layers_with_features, name_of
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.loading import options as load_options
from lensplug.model_files.failures import EXPECTED, failures_explained
from lensplug.model_files.folder_checks import CONFIG
from lensplug.model_files.model_class import model_class
from lensplug.model_files.remote_code import nobody_is_asked
from lensplug.running.available_memory import free_bytes
from lensplug.running.caching import Plan
from lensplug.running.memory_estimate import Estimate
from lensplug.running.model_estimate import ModelEstimate
from lensplug.validation.arguments import checked

KINDS: dict[str, dict[str, Any]] = {
    "nothing kept": {"names_filter": [], "query_positions": [], "logit_positions": [-1]},
    "query_positions=[-1], residual_positions=[-1], logit_positions=[-1]": {
        "query_positions": [-1],
        "residual_positions": [-1],
        "logit_positions": [-1],
    },
    "query_positions=[-1]": {"query_positions": [-1]},
    "all hooks": {},
}
"""What is kept -> options of `run_with_cache`."""
WHOLE = {"float32": 4, "bfloat16": 2}


@checked
def estimate(
    model: Any,
    *,
    tokens: int = 1000,
    examples: int = 1,
    dtype: load_options.Dtype = "bfloat16",
    device: str | torch.device | None = None,
    **kwargs: Any,
) -> ModelEstimate:
    """The memory of a model's weights, and of runs of its language core, from the configuration alone.

    Args:
        model: A model of the Hugging Face hub, a folder with a `config.json`, or a configuration.
        tokens: Positions of the prompt, those of its media among them.
        examples: How many prompts run together.
        dtype: Of the runs.
        device: Where it is to be; "cuda" if there is one, else "cpu", if not given.
        **kwargs: Where the configuration is, as for `load`: `revision`, `local_files_only`, ...

    Raises:
        LensplugError: If there is no such model, or its configuration is none that transformers can build.
    """
    if tokens < 1 or examples < 1:
        raise LensplugError(f"tokens is {tokens} and examples {examples}, expected at least 1 of each.")
    wanted = load_options.known_dtype(dtype)
    kind = torch.bfloat16 if isinstance(wanted, str) else wanted
    place, where, _ = load_options.options(kwargs, device)
    config = _config(model, where)
    name = str(getattr(config, "_name_or_path", "") or type(config).__name__)
    hf_model = _without_memory(config, name, kind)
    runs, why, core_parameters = {}, "", 0
    try:
        core = _core(hf_model)
        core_parameters = _count([core.decoder, core.head])
        runs = _runs(core, tokens, examples)
    except LensplugError as refused:
        why = f"No runs: {refused}"
    return ModelEstimate(
        name_of(hf_model), _count([hf_model]), core_parameters, tokens, examples, str(kind).removeprefix("torch."),
        _weights(hf_model, str(kind).removeprefix("torch."), kind.itemsize), runs, free_bytes(place), str(place), why,
    )  # fmt: skip


def _config(model: Any, where: dict[str, Any]) -> Any:
    if isinstance(model, transformers.PreTrainedConfig):
        return model
    if not isinstance(model, str | Path):
        raise LensplugError(
            f"a {type(model).__name__} is neither the name of a model nor a configuration: {EXPECTED} Or give"
            " AutoConfig.from_pretrained(name)."
        )
    with failures_explained(str(model)) as reading, nobody_is_asked():
        reading(CONFIG)
        return transformers.AutoConfig.from_pretrained(str(model), trust_remote_code=False, **where)


def _without_memory(config: Any, name: str, dtype: torch.dtype) -> Any:
    """The model of a configuration, on the meta device."""
    hf_class = model_class(config, name)
    classes = [hf_class] if hasattr(hf_class, "_from_config") else [hf_class, transformers.AutoModelForCausalLM]
    with torch.device("meta"), nobody_is_asked():
        for each in classes:
            make = getattr(each, "_from_config", None) or each.from_config
            try:
                return make(config, dtype=dtype).eval()
            except ValueError as error:  # an Auto class that has no model of this configuration
                why = str(error).split(".")[0]
    raise LensplugError(f"{name!r} is a {type(config).__name__}, of which no language model can be made: {why}.")


def _core(hf_model: Any) -> LanguageCore:
    """The parts, without what `LanguageCore.of` refuses of weights that are not loaded."""
    decoder, head = hf_model.get_decoder(), hf_model.get_output_embeddings()
    if head is None or not hasattr(decoder, "layers"):
        raise LensplugError(f"{type(hf_model).__name__} has no decoder and head of its own.")
    config = hf_model.config
    return LanguageCore(
        decoder, head, config.get_text_config(decoder=True), name_of(hf_model), {}, layers_with_features(config)
    )


def _runs(core: LanguageCore, tokens: int, examples: int) -> dict[str, int]:
    model = bridge.build(core)
    model.cfg.device = "cpu"
    ids = torch.zeros(examples, tokens, dtype=torch.long)
    inputs = _Inputs(ids)
    plans = {kept: Plan.of(model, inputs, **options) for kept, options in KINDS.items()}
    runs = {kept: Estimate._of(model, inputs, plan, "bridge").total for kept, plan in plans.items()}
    answer = Estimate.of_answer(model, inputs, plans["nothing kept"], 0, engine="bridge")
    return {**runs, "key-value cache of an answer": answer.by_hook["key-value cache"]}


class _Inputs(MultimodalInput):
    """As much of inputs as an estimate reads: their shape."""

    def __init__(self, tokens: torch.Tensor) -> None:
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "attention_mask", torch.ones_like(tokens))


def _count(parts: list[nn.Module]) -> int:
    """Parameters, tied ones once."""
    return sum(weight.numel() for weight in {id(w): w for part in parts for w in part.parameters()}.values())


def _weights(hf_model: Any, dtype: str, itemsize: int) -> dict[str, int]:
    whole = _count([hf_model])
    head = hf_model.get_output_embeddings()
    linears = [part.weight for part in hf_model.modules() if type(part) is nn.Linear and part is not head]
    packed = sum(weight.numel() for weight in {id(w): w for w in linears}.values())
    rows = sum(weight.shape[0] for weight in linears)
    rest = 2 * (whole - packed)
    forms = {**WHOLE, dtype: itemsize}
    sizes = {form: size * whole for form, size in forms.items()}
    return {**sizes, "int8": rest + packed + 4 * rows, "4-bit": rest + packed // 2 + packed // 64 * 4}
