"""A `best_model.pth`: one state dict of three modules, `llama.`, `wave2vec2.` and `projector.`, put where it belongs.

Every tensor of the file must find its place, and every weight of a module its tensor; what does not is named.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lensplug.errors import LensplugError
from lensplug.model_files.weight_files import refuse_broken_pickle

PARTS = ("llama", "wave2vec2", "projector")
WEIGHT_NORM = {
    "conv.weight_g": "conv.parametrizations.weight.original0",
    "conv.weight_v": "conv.parametrizations.weight.original1",
}
"""The two spellings that torch has had for the positional convolution of wav2vec2."""
BUFFERS = ("rotary_emb.inv_freq",)
"""Saved by older versions of transformers, and computed by newer ones."""
EMBEDDINGS = re.compile(r"(?:^|\.)(?:embed_tokens|lm_head)\.(?:base_layer\.|modules_to_save\.(?:\w+\.)?)?weight$")
"""The names of the matrices with a row for each token, in a model or in an adapter."""


def read_parts(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part, without its prefix; the file is mapped, not read, where it can be.

    Raises:
        LensplugError: If there is no such file, it holds more than tensors, or keys of no part.
    """
    path = Path(path)
    if not path.exists():
        raise LensplugError(f"there is no file {str(path)!r}.")
    refuse_broken_pickle(path)
    state = refuse_other_than_tensors(_load(path), path)
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    unknown_keys = []
    for key, value in state.items():
        part, _, name = str(key).partition(".")
        if part not in parts:
            unknown_keys.append(str(key))
        elif not name.endswith(BUFFERS):
            parts[part][name] = value
    if unknown_keys:
        raise LensplugError(
            f"{path.name} has keys that begin with none of 'llama.', 'wave2vec2.' and 'projector.':"
            f" {listed(unknown_keys)}."
        )
    return parts


def refuse_other_than_tensors(state: object, path: Path) -> Mapping[str, Tensor]:
    """What a file held, if that is a state dict of tensors that lie in it number for number.

    Raises:
        LensplugError: If it is none, or a tensor of it is a view that has more numbers than were stored, such as one
            row shown a billion times.
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        received = list(state)[:10] if isinstance(state, Mapping) else type(state).__name__
        raise LensplugError(
            f"{path.name} is no state dict (it holds {received}): expected tensors under keys that begin with"
            " 'llama.', 'wave2vec2.' and 'projector.'."
        )
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized:
            raise LensplugError(f"{path.name} has {name} in another form than numbers in rows: save it dense.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise LensplugError(
                f"{path.name} has {name} of shape {list(value.shape)}, of which only"
                f" {value.untyped_storage().nbytes()} bytes are stored: save it with .contiguous()."
            )
    return state


def rows_of(tensors: Mapping[str, Tensor]) -> int | None:
    """How many tokens the embeddings among the tensors have rows for; None where there are no embeddings."""
    return next((len(value) for name, value in tensors.items() if EMBEDDINGS.search(name)), None)


def listed(names: Collection[str]) -> str:
    """The first ten names, and how many there are."""
    text = ", ".join(list(names)[:10])
    return f"{text}, ... ({len(names)} in all)" if len(names) > 10 else text


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    what: str,
    *,
    may_lack: Collection[str] = (),
    may_drop: Collection[str] = (),
) -> None:
    """Put every tensor into the module, and see that every weight of the module got one.

    Args:
        module: What to fill.
        tensors: By name.
        what: Description of the module, for errors.
        may_lack: Weights of the module that need no tensor.
        may_drop: Tensors that need no place.

    Raises:
        LensplugError: If a tensor has no place, a weight no tensor, or a shape differs.
    """
    module_state = module.state_dict()
    placed = {
        name: value
        for name, value in _respelt(tensors, module_state).items()
        if name in module_state or name not in may_drop
    }
    if unknown_keys := [name for name in placed if name not in module_state]:
        raise LensplugError(f"the checkpoint has weights that the {what} has not: {listed(unknown_keys)}.")
    missing = [name for name in module_state if name not in placed and name not in may_lack]
    if missing:
        raise LensplugError(f"the checkpoint lacks weights of the {what}: {listed(missing)}.")
    for name, value in placed.items():
        if value.shape != module_state[name].shape:
            raise LensplugError(
                f"{name} of the {what} is {list(value.shape)} in the checkpoint, and {list(module_state[name].shape)}"
                " in the"
                " model: are these the models that it was trained from?"
            )
    module.load_state_dict(placed, strict=False)


def _load(path: Path) -> object:
    for mmap in (True, False):  # files of the old format cannot be mapped
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            raise LensplugError(
                f"{path.name} holds more than tensors, and opening it could run code of others. Save its state dict"
                f" alone: torch.save(model.state_dict(), ...). ({str(error).splitlines()[0]})"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            if not mmap:
                raise LensplugError(f"{path.name} is no checkpoint that torch can read: {error}") from error
    raise AssertionError("one of the two ways returns or raises")


def _respelt(tensors: Mapping[str, Tensor], module_keys: Collection[str]) -> dict[str, Tensor]:
    """The positional convolution spelt as the module at hand spells it."""
    spellings = {**WEIGHT_NORM, **{new_suffix: old_suffix for old_suffix, new_suffix in WEIGHT_NORM.items()}}
    respelt = {}
    for name, value in tensors.items():
        for suffix, other_suffix in spellings.items():
            if name not in module_keys and name.endswith(suffix):
                name = name.removesuffix(suffix) + other_suffix
        respelt[name] = value
    return respelt
