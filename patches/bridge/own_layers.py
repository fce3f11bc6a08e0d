"""The gap: a TransformerBridge reads `.weight` of layers that keep none as a matrix: quantised, adapted, offloaded.

Layers of bitsandbytes keep packed bytes under that name, those of an adapter the weight without what the adapter
adds, offloaded ones a tensor without numbers; the bridge refuses some of them, and multiplies with others. A copy of
such a layer is wrong too: bitsandbytes keeps what it has unpacked on the parameter, accelerate the weights in a hook,
PEFT says on the layer which adapter acts.

So these layers are not copied. `Readable` stands in the bridge for each: it runs the layer itself, by its own forward,
and makes of its weight a matrix, when somebody asks (`W_O`, `W_out`, `W_U`), for as long as he needs it.

Checked against bitsandbytes 0.50, torchao 0.18, optimum-quanto 0.2, PEFT 0.18 to 0.21, accelerate 1.15.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from lensplug.patches.adapters import is_adapted
from lensplug.patches.core_parts import CoreParts
from lensplug.patches.errors import LensplugError
from lensplug.patches.placement import device_of, hooks_of, is_placed, loaded


class Readable(nn.Module):
    """A layer in a bridge's model: computed by the layer itself, read as a matrix."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        """Keep the layer; nothing of it is copied.

        Args:
            inner: A linear layer, or an embedding.
            dtype: That of the residual stream, in which its matrix is given.
        """
        nn.Module.__init__(self)  # and no other class's
        self.inner, self.dtype = inner, dtype
        self.train(inner.training)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's own forward; hooks that a user has put on the layer see his own model's runs only.

        Raises:
            LensplugError: If a gradient is taken, and the layer's kernel has none.
        """
        with_gradient = torch.is_grad_enabled() and x.requires_grad
        if with_gradient and _is_packed_for_processors(self.inner):
            return functional.linear(x, matrix(self.inner).to(x.dtype), bias_of(self.inner))
        output = self.inner.forward(x, *args, **kwargs)
        if with_gradient and not output.requires_grad:
            raise LensplugError(
                f"no gradient goes through a {type(self.inner).__name__} here, whose kernel is for inference alone:"
                " what needs gradients needs the model without quantisation, or on another device."
            )
        return output

    @property
    def weight(self) -> Tensor:
        """`[out in]`, or of an embedding `[d_vocab d_model]`: what the layer multiplies with, as it is now."""
        return MatrixWhenRead.of(self.inner, self.dtype)

    def __getattr__(self, name: str) -> Any:
        """What else the layer has: `in_features`, `embedding_dim`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("inner", "weight", "bias"):
                raise
            return getattr(self.inner, name)


class ReadableLinear(Readable, nn.Linear):  # type: ignore[misc, override]
    """A linear layer, which a bridge must know for one: it takes a square weight of anything else for its transpose."""

    @property
    def bias(self) -> Tensor:  # type: ignore[override]
        """The layer's bias; zeros where it has none, as the bridge would put them into a head."""
        bias = bias_of(self.inner)
        if bias is not None:
            return bias.to(self.dtype)
        return torch.zeros(cast("int", self.inner.out_features), dtype=self.dtype, device=device_of(self.inner))


class MatrixWhenRead(Tensor):
    """A layer's weight, made into a matrix by the first operation on it: a bridge looks at dtypes in every run."""

    layer: nn.Module

    @classmethod
    def of(cls, layer: Any, dtype: torch.dtype) -> MatrixWhenRead:
        """The weight of a linear layer or an embedding, which will be read in this dtype."""
        is_linear = hasattr(layer, "in_features")
        shape = (layer.out_features, layer.in_features) if is_linear else (layer.num_embeddings, layer.embedding_dim)
        make: Any = Tensor._make_wrapper_subclass
        weight: MatrixWhenRead = make(cls, shape, dtype=dtype, device=device_of(layer), requires_grad=False)
        weight.layer = layer
        return weight

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # shape, dtype and device are said without numbers

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Any operation: the matrix takes this one's place."""
        args, kwargs = tree_map_only(MatrixWhenRead, cls._read, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _read(self) -> Tensor:
        return matrix(self.layer).to(self.dtype)


def own_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that are not plain: the outermost of each, an adapter and not the layer inside it."""
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        if is_own(module):
            found.append(module)
        else:
            for child in module.children():
                look(child)

    look(model)
    return list(dict.fromkeys(found))


def is_own(module: nn.Module) -> bool:
    """Whether a module is a layer whose weight is not, or not only, the matrix under that name."""
    kind = type(module)
    if kind in (nn.Linear, nn.Embedding):
        return is_placed(module) or is_packed(module)
    if is_adapted(module):
        return True
    of_transformers = kind.__module__.startswith("transformers.models.")
    if isinstance(module, nn.Embedding):
        return is_placed(module) or is_packed(module) or not of_transformers
    return hasattr(module, "in_features") and not of_transformers


def is_packed(module: nn.Module) -> bool:
    """Whether a parameter of this module itself is a quantised tensor, of whatever library."""
    return any(
        parameter is not None and (type(parameter) is not nn.Parameter or not parameter.is_floating_point())
        for parameter in module._parameters.values()
    )


def refuse_own_layers(core: CoreParts, why: str) -> None:
    """Raise if a core has quantised, adapted, split or offloaded layers.

    Args:
        core: The core.
        why: What cannot be done with them, and what can.

    Raises:
        LensplugError: Then, with what they are.
    """
    if layers := [*own_layers(core.decoder), *own_layers(core.head)]:
        raise LensplugError(f"the core has layers that are no plain nn.Linear ({kinds_of(layers)}), and {why}.")


def kinds_of(layers: list[nn.Module]) -> str:
    """What the layers are, in words: "Linear4bit", "Linear, offloaded"."""
    return ", ".join(sorted({_kind(layer) for layer in layers}))


def _kind(layer: nn.Module) -> str:
    name = type(layer).__name__
    if type(layer).__module__.startswith("peft."):
        return f"{name} with an adapter"
    if type(layer) is nn.Linear and is_packed(layer):
        return f"Linear of {type(layer.weight).__name__}"
    return f"{name}, split or offloaded" if is_placed(layer) else name


def matrix(layer: Any) -> Tensor:
    """What a layer multiplies with, `[out in]`: unpacked, loaded, and with its active adapters.

    Raises:
        LensplugError: If that is not known of a layer of this kind.
    """
    if is_adapted(layer):
        return _adapted(layer)
    if is_placed(layer) and not is_packed(layer):
        return loaded(layer, "weight").detach()
    weight: Any = getattr(layer, "weight", None)
    if _is_packed_for_processors(layer):
        return _by_identity(layer)
    if type(layer).__module__.startswith("bitsandbytes.") and isinstance(weight, Tensor):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        unpacked: Tensor = dequantize_bnb_weight(weight, getattr(layer, "state", None))
        return unpacked.detach()
    if isinstance(weight, Tensor) and type(weight) is not nn.Parameter and hasattr(weight, "dequantize"):
        unpacked = weight.dequantize()
        return unpacked.detach()
    if type(layer) in (nn.Linear, nn.Embedding) and not is_packed(layer):
        plain: Tensor = weight.detach()
        return plain
    raise LensplugError(
        f"this reads a weight as a matrix, and that of a {type(layer).__name__} ({type(layer).__module__}) is not known"
        " as one: runs, patterns and gradients do not need it; for this analysis load the model without quantisation."
    )


def _is_packed_for_processors(layer: Any) -> bool:
    """Whether bitsandbytes has packed a layer anew, for a kernel of processors that knows no gradient.

    It does so in the first run without gradients; one with gradients then fails or, of layers without bias, has none.
    """
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False)) and not is_adapted(layer)


def _by_identity(layer: Any) -> Tensor:
    """What a layer makes of unit vectors, less its bias."""
    with torch.no_grad():
        rows: Tensor = layer.forward(torch.eye(layer.in_features))
        bias = bias_of(layer)
    return (rows if bias is None else rows - bias.to(rows)).T


def bias_of(layer: Any) -> Tensor | None:
    """The bias that a layer adds.

    Raises:
        LensplugError: If an adapter adds one of its own.
    """
    if is_adapted(layer):
        if any(getattr(layer, "lora_bias", {}).values()) and not layer.disable_adapters:
            raise _unknown(layer, "an adapter with a bias of its own")
        return bias_of(_inside(layer))
    if layer._parameters.get("bias") is not None:
        return loaded(layer, "bias").detach()
    bias: Tensor | None = getattr(layer, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def _inside(layer: Any) -> Any:
    """What an adapter is around, or of a layer that is trained as a whole the one that acts."""
    if hasattr(layer, "base_layer"):
        return layer.base_layer
    if hasattr(layer, "modules_to_save"):
        active = (
            [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.modules_to_save]
        )
        return layer.modules_to_save[active[0]] if active else layer.original_module
    raise _unknown(layer, "its way of adapting")


def _adapted(layer: Any) -> Tensor:
    """The weight inside, and what the active adapters add to it."""
    weight = matrix(_inside(layer))
    if layer.disable_adapters or getattr(layer, "merged", False) or hasattr(layer, "modules_to_save"):
        return weight
    if not hasattr(layer, "lora_A") or len(getattr(layer, "lora_embedding_A", {})):
        raise _unknown(layer, "its way of adapting")
    for name in layer.active_adapters:
        if getattr(layer, "use_dora", {}).get(name) or getattr(layer, "lora_variant", {}).get(name):
            raise _unknown(layer, "a variant of LoRA that is no sum, such as DoRA")
        if name in layer.lora_A:
            weight = weight + layer.get_delta_weight(name).detach().to(weight)
    return weight


def _unknown(layer: Any, what: str) -> LensplugError:
    return LensplugError(
        f"this reads a weight as a matrix, and that of a {type(layer).__name__} is not known as one ({what}): merge the"
        " adapter, model.merge_and_unload(), or turn it off, with lens.adapter('off'). Runs, patterns and gradients do"
        " not need it."
    )


def resident(module: nn.Module) -> nn.Module:
    """A copy of a small module that accelerate places (a norm, a rotation), with its weights in memory, without hooks.

    A bridge computes norms by itself, from their weights, and never calls the module that would load them.
    """
    new = copy.copy(module)
    held: dict[str, Any] = vars(new)
    held["_parameters"] = {
        name: value if value is None else nn.Parameter(loaded(module, name).detach(), requires_grad=value.requires_grad)
        for name, value in module._parameters.items()
    }
    held["_buffers"] = {
        name: value if value is None else loaded(module, name) for name, value in module._buffers.items()
    }
    for name in ("_hf_hook", "_old_forward", "forward"):
        held.pop(name, None)
    for name, hooks in held.items():
        if name.endswith("_hooks") and isinstance(hooks, dict):
            held[name] = type(hooks)()
    return new


def _readable(layer: nn.Module, dtype: torch.dtype) -> Readable:
    return ReadableLinear(layer, dtype) if hasattr(layer, "in_features") else Readable(layer, dtype)


def taken_as_they_are(module: nn.Module, dtype: torch.dtype | None = None) -> Iterator[tuple[Any, Any]]:
    """For a copy of a module: what is not copied in it, and what takes its place.

    Args:
        module: A decoder, a head, or a whole model.
        dtype: Layers become `Readable` in this dtype; None: they stay what they are.
    """
    layers = own_layers(module)
    inside = {part for layer in layers for part in layer.modules()}
    for layer in layers:
        yield layer, layer if dtype is None else _readable(layer, dtype)
    for part in module.modules():
        if part in inside or not is_placed(part):
            continue
        if dtype is not None and not any(True for _ in part.children()):
            yield part, resident(part)
        else:  # a block whose hook moves what it is given
            yield from ((hook, hook) for hook in (vars(part)["_hf_hook"], *hooks_of(part)))
