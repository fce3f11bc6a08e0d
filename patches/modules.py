"""Every module of a model, for checks that look at all of them before each run.

Not a patch but what patches, and the fingerprint of weights, look through a model with.
`nn.Module.modules()` is a generator in a generator for each level of the model: three times the time of this list.
"""

from __future__ import annotations

from torch import nn


def every_module(*models: nn.Module) -> list[nn.Module]:
    """The models and all that is in them, each once, in the order in which `modules()` comes by them."""
    found: dict[nn.Module, None] = {}
    waiting = [*reversed(models)]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting += [child for child in reversed(module._modules.values()) if child is not None]
    return list(found)
