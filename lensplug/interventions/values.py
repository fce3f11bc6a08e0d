"""What edits put in: activations of another run, means over many runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.interventions.places import RunPositions
from lensplug.interventions.tensors import tensor_in_words


def activation_of(values: Any, name: str) -> Tensor:
    """The activation of a hook, out of a cache or a mapping.

    Raises:
        LensplugError: If it is not there.
    """
    try:
        value = values[name]
    except KeyError:
        names: Iterable[str] = values.keys() if isinstance(values, Mapping) or hasattr(values, "keys") else ()
        raise LensplugError(
            f"values have no {name}, only {', '.join(list(names)[:4]) or 'nothing'}: cache it"
            f" (names_filter={name!r}), or leave its layer out."
        ) from None
    return value if isinstance(value, Tensor) else _refused(name, value)


def _refused(name: str, value: Any) -> Tensor:
    raise LensplugError(f"values[{name!r}] is a {type(value).__name__}, expected a tensor.")


def refuse_other_positions(value: Tensor, name: str, positions: RunPositions) -> None:
    """Raise if an activation of another run does not have this run's positions."""
    batch, length = positions.attended.shape
    if value.ndim < 3 or value.shape[1] != length or value.shape[0] not in (1, batch):
        raise LensplugError(
            f"{name} of the other run is {list(value.shape)}, this run has {batch} examples of {length} positions: run"
            " the other on inputs with the same positions (analysis.activation_patching aligns prompts that differ)."
        )


def fitting(value: Tensor, activation: Tensor, name: str) -> Tensor:
    """Values in the shape of an activation `[batch pos ...]`; a mean has no axes of batch and positions.

    Raises:
        LensplugError: If behind positions they have other axes. Nothing is broadcast: a number is no vector.
    """
    is_mean = value.ndim == activation.ndim - 2
    found, expected = value.shape if is_mean else value.shape[2:], activation.shape[2:]
    if found != expected or not (is_mean or value.ndim == activation.ndim):
        of_keys = " (keys and values have one head for several queries)" if name.endswith(("hook_k", "hook_v")) else ""
        raise LensplugError(
            f"values for {name} are {list(value.shape)}, and {name} is {list(activation.shape)}: behind examples and"
            f" positions expected {list(expected)}{of_keys}."
        )
    return value.to(activation).expand_as(activation)


def values_in_words(values: Any, hook: str, layers: Any) -> str:
    """Activations as text, for provenance: those of one hook, each with a fingerprint of its numbers.

    Args:
        values: A cache or a mapping.
        hook: The end of their names: "hook_mlp_out".
        layers: In which layers, as the user gave it; others are left out where that can be told. Where none has
            that name, all are said.
    """
    tensors: Mapping[str, Tensor] = getattr(values, "cache_dict", values)
    listed = [layers] if isinstance(layers, int) else list(layers or ())
    chosen = {f"blocks.{layer}." for layer in listed} if listed and all(layer >= 0 for layer in listed) else None
    names = [
        name
        for name in sorted(tensors)
        if name.endswith(hook) and (chosen is None or name[: name.find(".", 7) + 1] in chosen)
    ]
    said = [f"{name} {tensor_in_words(tensors[name])}" for name in names or sorted(tensors)]
    rest = [f"and {len(said) - 3} more {sha256(' '.join(said[3:]).encode()).hexdigest()[:8]}"] if len(said) > 3 else []
    return ", ".join([*said[:3], *rest])
