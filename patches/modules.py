"""Every module of a model, for checks that look at all of them before each run.

Not a patch but what patches, and the fingerprint of weights, look through a model with.
`nn.Module.modules()` is a generator in a generator for each level of the model: three times the time of this list.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def every_module(*models: nn.Module) -> list[nn.Module]:
    """The models and all their submodules, each once, outer ones first."""
    modules, visited = [*models], {*models}
    for module in modules:  # which grows meanwhile
        for child in module._modules.values():
            if child is not None and child not in visited:
                visited.add(child)
                modules.append(child)
    return modules


def attention_of(block: Any) -> Any | None:
    """What attends in a block of a TransformerLens model; None where something else mixes positions."""
    return getattr(block, "attn", None)


def attentions(model: Any) -> list[Any]:
    """The attention of every block that has one."""
    return [attn for block in model.blocks if (attn := attention_of(block)) is not None]
