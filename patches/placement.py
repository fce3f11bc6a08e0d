"""Where the weights of a module are while it computes: accelerate's hooks, read without importing it.

`device_map`, `cpu_offload` and `disk_offload` replace the forward of a module by one that moves its inputs, and loads
its weights from processor or disk for the length of the call. What reads a weight beside the call finds a tensor
without numbers (the meta device); these functions find the numbers.

Checked against accelerate 1.15.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """The hooks of accelerate on this module itself: none, one, or a sequence of them."""
    hook = vars(module).get("_hf_hook")
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def is_placed(module: nn.Module) -> bool:
    """Whether accelerate decides where this module computes."""
    return "_hf_hook" in vars(module)


def device_of(module: nn.Module) -> torch.device:
    """Where a module that has weights of its own computes: where its hook says, else where its weights are."""
    for hook in hooks_of(module):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    weight = next((tensor for tensor in (*module.parameters(), *module.buffers())), None)
    return torch.device("cpu") if weight is None else weight.device


def loaded(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of a module itself, with its numbers, where the module computes.

    Raises:
        KeyError: If it is on the meta device, and no hook loads it.
    """
    own: Tensor | None = module._parameters.get(name)
    tensor = module._buffers[name] if own is None else own
    assert tensor is not None
    if not tensor.is_meta:
        return tensor
    for hook in hooks_of(module):
        if getattr(hook, "weights_map", None) is not None:
            values: Tensor = hook.weights_map[name]
            return values.to(device_of(module), tensor.dtype)
    raise KeyError(name)


def is_loaded(module: nn.Module) -> bool:
    """Whether every weight of this module itself has numbers, in memory or where a hook finds them."""
    tensors = [*module._parameters.values(), *module._buffers.values()]
    offloaded = any(getattr(hook, "weights_map", None) is not None for hook in hooks_of(module))
    return offloaded or not any(tensor is not None and tensor.is_meta for tensor in tensors)
