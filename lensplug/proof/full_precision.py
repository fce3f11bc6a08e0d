"""A scope in which a decoder, its head and its wrapped core compute in float32, from the weights as they are.

Rounding in bfloat16 is a hundredth of a number: it hides a wrong epsilon, a bias that is missing, a mask that is off by
one. Within the scope every weight of both models is replaced by its float32 copy. Copies of memory that both share are
made once. Where all of them do not fit, those of a block are made when it begins, and are gone when it ends. No memory
of the model itself is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lensplug.hf.language_core import LanguageCore
from lensplug.patches.modules import every_module
from lensplug.running.available_memory import free_bytes

HALF = (torch.float16, torch.bfloat16)


@contextmanager
def full_precision(core: LanguageCore, model: Any) -> Iterator[bool]:
    """Both compute in float32 while it lasts; yields whether all float32 weights are there at once.

    Args:
        core: The decoder and head of the full model.
        model: The wrapped core.
    """
    if core.dtype not in HALF:
        yield True
        return
    memory: dict[Any, Tensor] = {}
    # Parts of a decoder that no component of a bridge is around (projections of per-layer inputs) are in its own model.
    ours = [model] + [getattr(model, "original_model", model)] * hasattr(model, "original_model")
    pairs = [(core.decoder.layers, every_module(core.decoder, core.head)), (model.blocks, every_module(*ours))]
    weights = {w.data_ptr(): w.numel() for _, modules in pairs for m in modules for _, w in _half(m)}
    whole = 4 * sum(weights.values()) < free_bytes(core.device) / 2
    with ExitStack() as stack:
        for layers, modules in pairs:
            inside = {part for layer in layers for part in every_module(layer)}
            for part in modules:
                if isinstance(part, nn.Embedding):
                    stack.enter_context(part.register_forward_hook(lambda *given: given[-1].float()))
            _swapped(stack, [part for part in modules if part not in inside], memory)
            for layer in layers:
                if whole:
                    _swapped(stack, every_module(layer), memory)
                else:
                    stack.enter_context(_when_it_runs(layer))
        stack.enter_context(core.decoder.register_forward_pre_hook(_in_full, with_kwargs=True))
        embedded = getattr(model, "hook_embed", None)
        if isinstance(embedded, nn.Module):
            stack.enter_context(embedded.register_forward_hook(lambda *given: given[-1].float()))
        yield whole


@contextmanager
def in_full(*modules: nn.Module) -> Iterator[None]:
    """These modules and all inside them in float32 while it lasts: for what is called outside its block."""
    with ExitStack() as stack:
        _swapped(stack, every_module(*modules), {})
        yield


def _half(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The half-precision weights and buffers of a module itself; those of embeddings are left, they are looked up."""
    if isinstance(module, nn.Embedding):
        return []
    named = [*module._parameters.items(), *module._buffers.items()]
    return [(name, value) for name, value in named if value is not None and value.dtype in HALF]


def _swapped(stack: ExitStack, modules: Sequence[nn.Module], memory: dict[Any, Tensor]) -> None:
    """Replace the weights of modules, until the stack is left."""
    for module in modules:
        for name, value in _half(module):
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if key not in memory:
                memory[key] = value.detach().float()
            if name in module._parameters:
                new: Any = nn.Parameter(memory[key], requires_grad=False)
                place: dict[str, Any] = module._parameters
            else:
                new, place = memory[key], module._buffers
            stack.callback(place.__setitem__, name, value)
            place[name] = new


@contextmanager
def _when_it_runs(layer: nn.Module) -> Iterator[None]:
    """A layer whose weights are float32 only while it runs."""
    now = ExitStack()

    def begin(*given: Any) -> None:
        _swapped(now, every_module(layer), {})

    def end(*given: Any) -> None:
        now.close()

    with ExitStack() as stack:
        stack.callback(now.close)
        stack.enter_context(layer.register_forward_pre_hook(begin))
        stack.enter_context(layer.register_forward_hook(end, always_call=True))
        yield


def _in_full(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a decoder is given, in float32; embeddings that it looks up itself are so by their own hook."""
    return tuple(_float(value) for value in args), {name: _float(value) for name, value in kwargs.items()}


def _float(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in HALF:
        return value.float()
    if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) for part in value):
        return type(value)(_float(part) for part in value)
    return value
