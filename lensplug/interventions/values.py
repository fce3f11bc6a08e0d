"""What edits put in: activations of another run, means over many runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def values_in_words(values: Any) -> str:
    """Activations as text, for provenance: the first names, each with a fingerprint of its numbers."""
    tensors: Mapping[str, Tensor] = getattr(values, "cache_dict", values)
    return ", ".join(f"{name} {tensor_in_words(tensors[name])}" for name in sorted(tensors)[:3])
