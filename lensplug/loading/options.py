"""Options of `lensplug.load`, checked against what is available before anything large is read.

`load` loads one set of whole weights in one dtype to one device. Options of transformers that would give another one
(split, offloaded or quantised weights) are refused by name, with what to type in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from transformers import utils

from lensplug.errors import LensplugError

WHERE_FROM = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Options that say where files are: for configuration, weights and processor."""
OF_WEIGHTS = ("attn_implementation", "low_cpu_mem_usage", "use_safetensors", "variant", "weights_only")
"""Options for the weights alone."""
OWN_MODEL = "load the model yourself with transformers, and give it to lensplug.wrap(model, processor)"
QUANTISED = (
    "lensplug.load loads whole weights: "
    + OWN_MODEL
    + ", which takes it quantised; or leave it out, and save memory with"
    " dtype='bfloat16'"
)
SPLIT = (
    "lensplug.load loads to one device: leave it out, and give device='cuda' (or 'cuda:1', 'cpu'); or "
    + OWN_MODEL
    + ", which takes it split or offloaded"
)
REFUSED = {
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_config", "torchao_config"), QUANTISED),
    **dict.fromkeys(
        ("max_memory", "offload_folder", "offload_state_dict", "offload_buffers", "tp_plan", "tp_size", "device_mesh"),
        SPLIT,
    ),
    "torch_dtype": "the argument is called dtype: lensplug.load(name, dtype=...)",
    "ignore_mismatched_sizes": "weights that do not fit would be random numbers: leave it out",
    "state_dict": OWN_MODEL,
    "config": OWN_MODEL,
    "output_loading_info": "load returns a lens: leave it out",
}
Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"] | str | torch.dtype
"""dtype of the weights: a name, with or without "torch.", a torch.dtype, or "auto" (the checkpoint's)."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ATTENTION = {"eager": True, "sdpa": True, "flash_attention_2": "flash_attn_2", "flash_attention_3": "flash_attn_3"}
"""Name -> always there, or the package that transformers must find."""


def known_device(device: Any) -> torch.device:
    """The device; for None, "cuda" if available, else "cpu".

    Raises:
        LensplugError: If there is none of that name here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    available += ["mps"] if torch.backends.mps.is_available() else []
    hint = f"give device={' or '.join(map(repr, available))}, which are here, or leave it out"
    hint = hint if len(available) > 1 else "give device='cpu', the only one here, or leave it out"
    try:
        torch_device = torch.device(device)
    except RuntimeError as error:
        raise LensplugError(f"device is {device!r}, which torch does not know: {hint}.") from error
    if torch_device.type == "meta":
        raise LensplugError(f"device is 'meta', where weights have no numbers: {hint}.")
    try:
        torch.empty(1, device=torch_device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise LensplugError(f"device is {str(device)!r}, and there is none here that torch can use: {hint}.") from error
    return torch_device


def known_dtype(dtype: Any) -> str | torch.dtype:
    """The dtype; "auto" for the checkpoint's.

    Raises:
        LensplugError: If it is none of weights.
    """
    if dtype == "auto":
        return "auto"
    torch_dtype: torch.dtype | None = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if torch_dtype is None or torch_dtype not in DTYPES.values():
        raise LensplugError(f"dtype is {dtype!r}, expected 'auto' or one of {', '.join(map(repr, DTYPES))}.")
    return torch_dtype


def options(given: Mapping[str, Any], device: Any) -> tuple[torch.device, dict[str, Any], dict[str, Any]]:
    """The device, options that say where files are, and options of the weights.

    Raises:
        LensplugError: If an option is unknown, or would make another core than the checkpoint's.
    """
    remaining = dict(given)
    device = _of_map(remaining.pop("device_map"), device) if "device_map" in remaining else device
    for name, value in remaining.items():
        if name in REFUSED and value not in (None, False):
            raise LensplugError(f"{name}={_brief(value)}: {REFUSED[name]}.")
    remaining = {name: value for name, value in remaining.items() if name not in REFUSED}
    handed_on = (*WHERE_FROM, *OF_WEIGHTS, "gguf_file")
    if unknown := [name for name in remaining if name not in handed_on]:
        raise LensplugError(
            f"load takes no {unknown[0]!r}. Of transformers' arguments it hands on {', '.join(sorted(handed_on))}; for"
            f" others, those of a processor too, {OWN_MODEL}."
        )
    attention = remaining.get("attn_implementation")
    for one in attention.values() if isinstance(attention, Mapping) else [attention]:
        _refuse_attention(one)
    where = {name: value for name, value in remaining.items() if name not in OF_WEIGHTS}
    return known_device(device), where, {name: remaining[name] for name in OF_WEIGHTS if name in remaining}


def refuse_quantised(config: Any, name: str) -> None:
    """Raise if a checkpoint's own weights are quantised, by what its configuration says.

    Raises:
        LensplugError: Then.
    """
    text = config.get_text_config(decoder=True)
    quantization = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    if quantization:
        method = (
            quantization.get("quant_method")
            if isinstance(quantization, Mapping)
            else getattr(quantization, "quant_method", None)
        )
        raise LensplugError(
            f"the weights of {name!r} are quantised ({getattr(method, 'value', method) or 'unknown'}), and"
            f" lensplug.load loads whole weights: {OWN_MODEL}, which takes it quantised; or load the checkpoint that it"
            " was made of."
        )


def _of_map(device_map: Any, device: Any) -> Any:
    """The one device of a device_map.

    Raises:
        LensplugError: If it is more than one, or `device` is another.
    """
    if device_map is None:
        return device
    places = set(map(str, device_map.values())) if isinstance(device_map, Mapping) else {str(device_map)}
    place: str = next(iter(places)) if len(places) == 1 else ""
    if place in ("", "auto", "balanced", "balanced_low_0", "sequential", "disk"):
        raise LensplugError(f"device_map={_brief(device_map)}: {SPLIT}.")
    place = f"cuda:{place}" if place.isdigit() else place
    if device is not None and torch.device(device) != torch.device(place):
        raise LensplugError(f"device={str(device)!r} and device_map={_brief(device_map)} differ: give device= alone.")
    return place


def _refuse_attention(name: Any) -> None:
    needed = ATTENTION.get(name) if isinstance(name, str) else name is None
    if needed is None or needed is False:
        raise LensplugError(
            f"attn_implementation is {name!r}, expected one of {', '.join(map(repr, ATTENTION))}: leave it out for"
            " SDPA."
        )
    if isinstance(needed, str) and not getattr(utils, f"is_{needed}_available", lambda: False)():
        raise LensplugError(
            f"attn_implementation={name!r} needs a package (flash-attn) that is not installed, or a GPU that is not"
            " here: leave it out for SDPA. (What reads patterns computes them by itself.)"
        )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__}(...)"
