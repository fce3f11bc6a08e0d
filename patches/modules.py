"""Every module of a model, for checks that look at all of them before each run.

Not a patch but what patches, and the fingerprint of weights, look through a model with.
`nn.Module.modules()` is a generator in a generator for each level of the model: three times the time of this list.
"""

from __future__ import annotations

from torch import nn


def every_module(*models: nn.Module) -> list[nn.Module]:
    """The models and all that is in them, each once, the outer ones first."""
    found, known = [*models], {*models}
    for module in found:  # which grows meanwhile
        for child in module._modules.values():
            if child is not None and child not in known:
                known.add(child)
                found.append(child)
    return found
