"""The class that a checkpoint's weights are loaded into, built without weights first, to see that both fit."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedModel

from lensplug.errors import LensplugError
from lensplug.model_files.weight_files import WeightFiles

OWN_CODE = ("AutoModelForMultimodalLM", "AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")
"""Under which of them a checkpoint names its own code, the likeliest first."""
SLACK = 1_000_000
"""Numbers that a model may have beyond twice its files': buffers that are not saved."""


def model_class(config: Any, name: str, *, trust_remote_code: bool = False) -> Any:
    """The class that a configuration names, or the Auto class that finds it.

    Args:
        config: Configuration of the checkpoint.
        name: Name of the checkpoint, for errors.
        trust_remote_code: Whether code that the checkpoint brings may be its class.

    Raises:
        LensplugError: If it names what is no model of transformers, or a model of another configuration.
    """
    auto_map = getattr(config, "auto_map", None) or {}
    if trust_remote_code and (auto_classes := [auto for auto in OWN_CODE if auto in auto_map]):
        return getattr(transformers, auto_classes[0])
    architectures = getattr(config, "architectures", None) or [None]
    first = architectures[0] if isinstance(architectures, list | tuple) else architectures
    if first is None:
        return transformers.AutoModelForMultimodalLM
    hf_class: Any = getattr(transformers, first, None) if isinstance(first, str) else None
    if hf_class is None and isinstance(first, str):
        return transformers.AutoModelForMultimodalLM  # as it is registered: audio-LLaMA
    is_model = isinstance(hf_class, type) and issubclass(hf_class, PreTrainedModel)
    expected = getattr(hf_class, "config_class", None) if is_model else None
    if expected is None:
        raise LensplugError(
            f"{name!r} could not be loaded: its config.json has architectures = [{first!r}], which is no model of"
            " transformers: expected the name of one, or leave it out."
        )
    if not isinstance(config, expected):
        raise LensplugError(
            f"{name!r} could not be loaded: its config.json has architectures = [{first!r}], a model of"
            f" {expected.__name__}, and model_type = {config.model_type!r}, a {type(config).__name__}: one of"
            " the two is of another model."
        )
    return hf_class


def refuse_other_size(
    auto: Any, config: Any, weights: WeightFiles | None, name: str, *, trust_remote_code: bool = False
) -> None:
    """Raise if the configuration describes a model that is larger than the weight files, before memory is taken.

    It is built without weights, on the meta device, and building ends where it has more weights than can be.

    Args:
        auto: From `model_class`.
        config: Configuration of the checkpoint.
        weights: What its files hold; None, and nothing is done.
        name: Name of the checkpoint, for errors.
        trust_remote_code: See `model_class`.

    Raises:
        LensplugError: Then.
    """
    if weights is None:
        return
    with _at_most(4 * weights.tensors + 1000, name), torch.device("meta"):
        model = _built(auto, copy.deepcopy(config), trust_remote_code)
    numbers = sum(weight.numel() for weight in model.parameters())
    if numbers > 2 * weights.numbers + SLACK:
        largest, weight = max(model.named_parameters(), key=lambda named_parameter: named_parameter[1].numel())
        raise LensplugError(
            f"{name!r} could not be loaded: its config.json describes a model of {numbers} numbers ({largest} has"
            f" {list(weight.shape)}), and its weight files hold {weights.numbers}: are these the weights of this"
            " configuration?"
        )


def other_shapes(auto: Any, config: Any, weights: WeightFiles | None, *, trust_remote_code: bool = False) -> str:
    """A description of the first weight whose shape in the files differs from the configuration; "" if none does."""
    if weights is None:
        return ""
    with torch.device("meta"):
        model = _built(auto, copy.deepcopy(config), trust_remote_code)
    for key, weight in model.state_dict().items():
        shape = weights.shapes.get(key, tuple(weight.shape))
        if shape != tuple(weight.shape):
            return f"{key} is {list(shape)} in the weight files, and {list(weight.shape)} by config.json"
    return ""


def _built(auto: Any, config: Any, trust_remote_code: bool) -> Any:
    if issubclass(auto, PreTrainedModel):
        return auto(config)
    return auto.from_config(config, trust_remote_code=trust_remote_code)


@contextmanager
def _at_most(most: int, name: str) -> Iterator[None]:
    """A scope that limits how many weights this thread may build."""
    thread, count = threading.get_ident(), 0

    def counted(module: nn.Module, parameter_name: str, parameter: Any) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count > most:
                raise LensplugError(
                    f"{name!r} could not be loaded: its config.json describes a model of more than {most} weights (the"
                    " number of layers, perhaps), many times those in its files: are these the weights of this"
                    " configuration?"
                )

    handle = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()
