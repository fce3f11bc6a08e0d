"""Every module of a model, for checks that look at all of them before each run.

Not a patch but what patches, and the fingerprint of weights, look through a model with.
`nn.Module.modules()` is a generator in a generator for each level of the model: three times the time of this list.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lensplug.patches.errors import LensplugError


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


def attention_in(model: Any, layer: int) -> Any:
    """The attention of one layer.

    Raises:
        LensplugError: If the layer has none, as some of Qwen3.5's and LFM2's: which have is named.
    """
    attn = attention_of(model.blocks[layer])
    if attn is None:
        layers = ", ".join(str(index) for index, block in enumerate(model.blocks) if attention_of(block) is not None)
        raise LensplugError(
            f"layer {layer} of this model has no attention, and no pattern: it mixes positions in another way. Layers"
            f" with attention are {layers}."
        )
    return attn


def attentions(model: Any) -> list[Any]:
    """The attention of every block that has one."""
    return [attn for block in model.blocks if (attn := attention_of(block)) is not None]
