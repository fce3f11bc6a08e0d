"""What an adapter's configuration may ask of peft, which follows it: patterns, ranks, modules, imports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lensplug.child import Child, ChildError
from lensplug.errors import LensplugError
from lensplug.model_files.json_files import read_object

PATTERNS = Child("match_patterns.py")
REFUSED = {
    "megatron_config": "peft would import a module that it names",
    "layer_replication": "it makes another model, with layers that are there several times",
}
"""Settings that change more than the weights of layers, and why they are not followed."""


def refuse_adapter_config(folder: Path, names: list[str], weights: Mapping[str, Tensor]) -> None:
    """Raise for an adapter that peft would take for ever over, or fill memory with.

    Args:
        folder: Folder of the adapter.
        names: Module names of the model that it is applied to.
        weights: What the adapter holds.

    Raises:
        LensplugError: Then; the setting is named.
    """
    path = folder / "adapter_config.json"
    config = read_object(path)
    for key, why in REFUSED.items():
        if config.get(key):
            raise LensplugError(f"{str(path)!r} has {key}, which is not followed: {why}. Merge the adapter with peft.")
    largest = max((max(value.shape) for name, value in weights.items() if "lora_" in name and value.ndim), default=0)
    for key, rank in _ranks(config):
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= max(largest, 1):
            raise LensplugError(
                f"the adapter {folder.name!r} has {key} = {rank!r} in adapter_config.json, a rank from 1 to {largest}"
                " by its weights: are these the weights of this configuration?"
            )
    for key, method, pattern in _patterns(config):
        try:
            reply = PATTERNS.ask([method, pattern, names])
        except ChildError as error:
            raise LensplugError(
                f"{str(path)!r} has a pattern in {key} that was stopped ({error}): {_brief(pattern)}. List the modules"
                ' by name, ["q_proj", "v_proj"].'
            ) from error
        if "error" in reply:
            raise LensplugError(
                f"the adapter {folder.name!r} has an invalid pattern in {key}, {_brief(pattern)}: {reply['error']}."
            )


def _ranks(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "r", config.get("r", 8)
    pattern = config.get("rank_pattern") or {}
    yield from ((f"rank_pattern.{key}", rank) for key, rank in (pattern.items() if isinstance(pattern, dict) else ()))


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Every regular expression that peft makes of a configuration: the setting, how it is matched, and the whole."""
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), str):
            yield key, "fullmatch", config[key]
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in config.get(key) or {}:
            yield key, "match", rf"(.*\.)?({pattern})$"
    layers = config.get("layers_pattern")
    for pattern in [layers] if isinstance(layers, str) else layers or []:
        yield "layers_pattern", "match", rf".*\.{pattern}\.(\d+)\."
    for key in ("modules_to_save", "target_parameters"):
        for pattern in config.get(key) or []:
            yield key, "match", rf"(^|.*\.){pattern}($|\..*)"


def _brief(pattern: Any) -> str:
    text = repr(pattern)
    return text if len(text) <= 80 else text[:77] + "..."
