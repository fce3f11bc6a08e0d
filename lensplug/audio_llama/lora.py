"""LoRA adapters put on a language model with peft, and refused where they are for another one."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lensplug.audio_llama.adapter_limits import refuse_adapter_config
from lensplug.audio_llama.checkpoint import listed, refuse_other_than_tensors
from lensplug.errors import LensplugError
from lensplug.model_files.json_files import read_object
from lensplug.model_files.weight_files import refuse_broken_pickle, safetensors_header

PREFIX = "base_model.model."
"""Before every name of the model that peft has wrapped."""
TRAINED = re.compile(r"\.lora_|\.modules_to_save\.")
"""In the names of what peft trains and saves; the rest is the model as it was."""
ADAPTER_NAMES = (
    # As the adapter's file has them, without the adapter's name, and as the model does, with it.
    (re.compile(r"\.(lora_[AB]|modules_to_save)\.(?:[^.]+\.)?(weight|bias)$"), r".\1.default.\2"),
    (re.compile(r"\.(lora_embedding_[AB])(?:\.[^.]+)?$"), r".\1.default"),
    (re.compile(r"\.lora_magnitude_vector(?:\..+)?$"), ".lora_magnitude_vector.default.weight"),
)


def attach(model: Any, folder: str | Path, weights: Mapping[str, Tensor]) -> Any:
    """The model with an adapter on it, every weight of the adapter in its place.

    Args:
        model: The language model.
        folder: The adapter.
        weights: What it holds (`adapter_weights`).

    Raises:
        LensplugError: If peft is not installed, or the adapter does not fit the model.
    """
    peft = _peft()
    name = Path(folder).name
    refuse_adapter_config(Path(folder), [name for name, _ in model.named_modules()], weights)
    try:
        with warnings.catch_warnings():  # peft asks transformers under a name that is on its way out
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # what its configuration makes peft raise is of every class
        raise LensplugError(
            f"the adapter {name!r} does not fit the model: {' '.join(str(error).split())[:600]}"
        ) from error
    # peft itself is silent about weights that it has no place for, and about places without a weight. (And its own
    # list of what it would save depends on what the hub answers.)
    module_state = adapted.state_dict()
    placed = respelt(weights, module_state)
    wrong = [
        key
        for key in placed
        if key not in module_state or not torch.equal(module_state[key], placed[key].to(module_state[key]))
    ]
    wrong += [key for key in module_state if TRAINED.search(key) and key not in placed]
    if wrong:
        raise LensplugError(
            f"the adapter {name!r} is for another model: these weights are in one and not in the other:"
            f" {listed(sorted(wrong))}."
        )
    return adapted


def adapter_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors that an adapter's folder holds.

    Raises:
        LensplugError: If there are none, or the file is broken.
    """
    files = [Path(folder) / f"adapter_model.{suffix}" for suffix in ("safetensors", "bin")]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        raise LensplugError(f"{str(folder)!r} is no adapter: it has no adapter_model.safetensors (or .bin).")
    if file.suffix == ".safetensors":
        safetensors_header(file)
    else:
        refuse_broken_pickle(file)
    try:
        weights: dict[str, Tensor] = _peft().load_peft_weights(str(folder), device="cpu")
        refuse_other_than_tensors(weights, file)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise LensplugError(f"the weights of the adapter, {str(file)!r}, cannot be read: {error}") from error
    return weights


def respelt(tensors: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Tensors under the names that the adapted model at hand has for them; what it has no name for keeps its own.

    Names differ between a model's state dict and an adapter's file, and older peft had no `base_layer`.

    Raises:
        LensplugError: If two tensors have one place, as where a model has two adapters.
    """
    renamed: dict[str, Tensor] = {}
    came_from: dict[str, str] = {}
    for name, value in tensors.items():
        full_name = name if name.startswith(PREFIX) else PREFIX + name
        for pattern, spelling in ADAPTER_NAMES:
            full_name = pattern.sub(spelling, full_name)
        stem, _, kind = full_name.rpartition(".")
        spellings = (f"{stem}.modules_to_save.default.{kind}", f"{stem}.base_layer.{kind}")
        new_name = next(
            (spelling_of_name for spelling_of_name in (full_name, *spellings) if spelling_of_name in own), name
        )
        # peft saves trained embeddings twice, under two names.
        if new_name in came_from and not torch.equal(renamed[new_name], value):
            raise LensplugError(
                f"{came_from[new_name]} and {name} have one place in the model: merge all adapters but the last before"
                " saving the checkpoint."
            )
        renamed[new_name], came_from[new_name] = value, name
    return renamed


def refuse_unmerged(folder: str | Path, before: Tensor, after: Tensor, adapter_weights: Tensor) -> None:
    """A language model under its plain names has its adapters merged; here one weight of it is looked at.

    Args:
        folder: The adapter.
        before: The weight without the adapter.
        after: The weight with it.
        adapter_weights: The weight in the checkpoint.

    Raises:
        LensplugError: If the checkpoint's weight is the one without the adapter.
    """
    before, after, adapter_weights = before.float(), after.float(), adapter_weights.float()
    if adapter_weights.shape == before.shape and (adapter_weights - before).norm() < 0.01 * (after - before).norm():
        raise LensplugError(
            f"the language model in the checkpoint does not have the adapter {Path(folder).name!r} merged, which is"
            " given: leave the keys that begin with 'llama.' out of the checkpoint, and base and adapters are taken"
            " from their folders; or leave the adapter out, if it was not trained with."
        )


def refuse_other_base(base: str | Path, adapters: Sequence[str | Path], *, allowed: bool) -> None:
    """An adapter says which model it is for.

    Raises:
        LensplugError: If that is not `base` by its last name, and not `allowed`; if it is no LoRA adapter; or if
            there is no adapter.
    """
    for folder in adapters:
        path = Path(folder) / "adapter_config.json"
        if not path.exists():
            raise LensplugError(f"{str(folder)!r} is no adapter: it has no adapter_config.json.")
        config = read_object(path)
        kind, recorded = config.get("peft_type"), config.get("base_model_name_or_path") or ""
        if kind is None or not isinstance(recorded, str):
            missing = "peft_type" if kind is None else "base_model_name_or_path, a name,"
            raise LensplugError(f"{str(path)!r} cannot be read as an adapter's configuration: {missing} is not in it.")
        if kind != "LORA":
            raise LensplugError(f"the adapter {Path(folder).name!r} is of the kind {kind}, expected LORA.")
        names = [Path(str(name)).name.lower() for name in (recorded, base)]
        if recorded and names[0] != names[1] and not allowed:
            raise LensplugError(
                f"the adapter {Path(folder).name!r} is for {recorded!r}, and the base is {Path(base).name!r}: give"
                " that base, or allow_other_base=True (--allow-other-base) if it is the same model under another name."
            )


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise LensplugError("adapters need peft: pip install peft.") from None
    return peft
