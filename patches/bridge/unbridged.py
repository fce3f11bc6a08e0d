"""The gap: a bridge puts its components into the Hugging Face model, and there is no way back.

`unbridged` makes a model of the same class around *copies of the modules*, with the bridge's components left out and
the parameters the same memory: what the model was before. The bridge, and what hangs on its hooks, stays as it is.

Checked against transformer-lens 3.9.0 and 4.3.0, whose components keep the wrapped module as `original_component`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lensplug.patches.bridge.core import copied, shared_memory
from lensplug.patches.errors import LensplugError, changed_inside


def is_bridge(model: Any) -> bool:
    """Whether this is a TransformerBridge (TransformerLens is not imported to find out)."""
    return any(kind.__name__ == "TransformerBridge" for kind in type(model).__mro__)


def is_bridged(model: Any) -> bool:
    """Whether a bridge has put its components into this Hugging Face model."""
    return isinstance(model, nn.Module) and any(_stands_for_another(module) for module in model.modules())


def unbridged(model: Any) -> Any:
    """The Hugging Face model of a bridge, or one that has been bridged, as it was before.

    Args:
        model: A TransformerBridge, or a Hugging Face model with a bridge's components inside.

    Returns:
        A model of the Hugging Face class that shares its weights.

    Raises:
        LensplugError: If the bridge has processed the weights: what they were is not known any more.
    """
    if is_bridge(model):
        _refuse_processed(getattr(model, "_weights_processed", False))
        model = model.original_model
    parts = [module for module in model.modules() if _stands_for_another(module)]
    _refuse_processed(any(getattr(part, "_use_processed_weights", False) for part in parts))
    copies = shared_memory(model)
    for part in reversed(parts):  # the innermost first: an outer one holds it
        copies[id(part)] = copied(_bare(part), copies)
    return copied(_bare(model), copies)


def _stands_for_another(module: nn.Module) -> bool:
    return any(kind.__name__ == "GeneralizedComponent" for kind in type(module).__mro__)


def _bare(module: nn.Module) -> nn.Module:
    """The module that a component wraps; bridged twice, that may be a component again."""
    while _stands_for_another(module):
        inside = getattr(module, "original_component", None)
        if not isinstance(inside, nn.Module):
            raise changed_inside(f"a {type(module).__name__} does not say which module it wraps")
        module = inside
    return module


def _refuse_processed(processed: bool) -> None:
    if processed:
        raise LensplugError(
            "this TransformerBridge has processed weights (enable_compatibility_mode, process_weights), which are not"
            " the model's own any more: boot it again and wrap that, lensplug.wrap(bridge, processor,"
            " process_weights=True)."
        )
