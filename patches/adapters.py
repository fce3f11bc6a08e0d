"""The gap: PEFT's own scopes switch adapters off and on, and leave behind which parameters are trained.

`ActiveAdapters` decides, on the layers themselves, which adapters act, and puts back exactly what was there. A bridge
runs the layers of its Hugging Face model (`own_layers`): both models change at once.

Checked against PEFT 0.18 to 0.21: LoRA and other adapters that are layers, and modules that are trained beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import nn

from lensplug.patches.errors import LensplugError
from lensplug.patches.patch import Patch, PatchOfParts

OFF = "off"
"""In place of a name: no adapter acts."""


def is_adapted(module: nn.Module) -> bool:
    """Whether this is a layer with adapters of PEFT around it, also one that is trained beside them as a whole."""
    kind: Any = type(module)
    return _is_of_peft(kind)


@lru_cache(maxsize=1024)
def _is_of_peft(kind: Any) -> bool:
    return any(base.__name__ in ("BaseTunerLayer", "AuxiliaryTrainingWrapper") for base in kind.__mro__)


def without_wrapper(model: Any) -> Any:
    """Of a `PeftModel` the model inside, whose layers hold the adapters; any other model as it is.

    Raises:
        LensplugError: If the adapter is no layer, but a prompt in front of every input.
    """
    if not any(kind.__name__ == "PeftModel" for kind in type(model).__mro__):
        return model
    for name, config in model.peft_config.items():
        if config.is_prompt_learning:
            raise LensplugError(
                f"the adapter {name!r} is a learned prompt ({type(config).__name__}), which {type(model).__name__} puts"
                " in front of every input: its positions are no tokens and no media. Adapters in layers (LoRA, IA3) can"
                " be wrapped."
            )
    return model.get_base_model()


class ActiveAdapters(PatchOfParts):
    """While applied, these adapters act in every adapted layer of a model, and no others.

    with ActiveAdapters(hf_model, "off"):
        hf_model(**inputs)
    """

    def __init__(self, model: nn.Module, names: str | Sequence[str]) -> None:
        """Prepare the patch.

        Args:
            model: A Hugging Face model with adapters.
            names: Of an adapter, or several that act together; "off" for none.

        Raises:
            LensplugError: If there is none of that name, or an adapter is merged into the weights.
        """
        layers: list[Any] = [module for module in model.modules() if is_adapted(module)]
        known = list(dict.fromkeys(name for layer in layers for name in _names_of(layer)))
        given = [names] if isinstance(names, str) else list(names)
        if not layers:
            raise LensplugError(
                f"{type(model).__name__} has no adapters: load one, model.load_adapter(name), before lensplug.wrap."
            )
        if unknown := [name for name in given if name not in known and given != [OFF]]:
            raise LensplugError(
                f"there is no adapter {unknown[0]!r}: there are {', '.join(map(repr, known))}, or 'off'."
            )
        if any(getattr(layer, "merged", False) for layer in layers):
            raise LensplugError(
                "an adapter is merged into the weights, and taking it out again leaves others behind: call"
                " model.unmerge_adapter() first."
            )
        super().__init__(model, [_Layer(layer, [] if given == [OFF] else given) for layer in layers])


class _Layer(Patch):
    nests = True

    def __init__(self, layer: Any, names: list[str]) -> None:
        super().__init__(layer)
        self._names = names

    def _options(self) -> dict[str, Any]:
        return {"names": self._names}

    def _changes(self) -> dict[str, Any]:
        if not self._names:
            return {"_disable_adapters": True}
        return {"_disable_adapters": False, "_active_adapter": list(self._names)}


def _names_of(layer: Any) -> list[str]:
    """The adapters that a layer has, acting or not."""
    containers = [part for part in layer.children() if isinstance(part, nn.ModuleDict | nn.ParameterDict)]
    return [name for container in containers for name in container]
