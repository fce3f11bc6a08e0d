"""Several results of one analysis as one, example after example.

The annotation of a field says where its examples are: `Float[Tensor, "example layer head"]` is joined along its axis
"example". Texts have no axes, so a class names the depth of the examples in them (`example_depth`). Everything else
(layers, classes, options) must be equal.

When not to use it: across models, checkpoints or options (`compare`), or for examples of different lengths where a
field has an entry for each position: prepare those in one batch, or read values that do not depend on the length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast, get_args

import torch
from jaxtyping import AbstractArray
from torch import Tensor

from lensplug.analysis.field_hints import field_hints
from lensplug.analysis.provenance import Made, refuse_other_making
from lensplug.errors import LensplugError

AnyResult = TypeVar("AnyResult")
EXAMPLE = "example"
"""The name of the axis."""


def combined(results: Sequence[AnyResult], example_depth: Mapping[str, int]) -> AnyResult:
    """The examples of all results as one result.

    Args:
        results: Of one class.
        example_depth: Field of texts -> how deep in it the examples are.

    Raises:
        LensplugError: If they are of several analyses, models or options, have no examples, or differ in another axis.
    """
    if not results:
        raise LensplugError("there are no results to be combined.")
    first, kind = results[0], type(results[0])
    if not any(example_axis(hint) is not None for hint in field_hints(kind).values()):
        raise LensplugError(f"a {kind.__name__} has no examples to be combined: combine the results it was made of.")
    refuse_other_making(cast("Sequence[Made]", results))
    joined = _joined_fields(results, kind.__name__, example_depth)
    return replace(first, **joined)  # type: ignore[type-var]  # every result is a dataclass


def example_axis(hint: Any) -> int | None:
    """The axis of the examples in a field with this annotation; None if it has none."""
    for member in get_args(hint) or (hint,):
        if isinstance(member, type) and issubclass(member, AbstractArray):
            names = member.dim_str.split()
            return names.index(EXAMPLE) if EXAMPLE in names else None
    return None


def _joined_fields(parts: Sequence[Any], kind: str, depths: Mapping[str, int]) -> dict[str, Any]:
    hints = field_hints(type(parts[0]))
    names = [field_.name for field_ in fields(parts[0]) if field_.name not in ("provenance", "provenances")]
    return {
        name: _joined([getattr(part, name) for part in parts], hints[name], depths.get(name), f"{kind}.{name}")
        for name in names
    }


def _joined(values: list[Any], hint: Any, depth: int | None, name: str) -> Any:
    first, axis = values[0], example_axis(hint)
    if axis is not None and all(isinstance(value, Tensor) for value in values):
        return _concatenated(values, axis, name)
    if depth is not None:
        return _lengthened(values, depth)
    if isinstance(first, tuple) and first and all(map(is_dataclass, first)):
        if len({len(value) for value in values}) == 1:
            layers = zip(*values, strict=True)
            return tuple(replace(layer[0], **_joined_fields(layer, name, {})) for layer in layers)
    elif all(_equal(value, first) for value in values[1:]):
        return first
    differing = next(value for value in values[1:] if not _equal(value, first))
    raise LensplugError(f"results cannot be combined: their {name} differ, {first!r} and {differing!r}.")


def _concatenated(values: list[Tensor], axis: int, name: str) -> Tensor:
    sizes = [[*value.shape[:axis], *value.shape[axis + 1 :]] for value in values]
    other_value = next((value for value, size in zip(values, sizes, strict=True) if size != sizes[0]), None)
    if other_value is not None:
        raise LensplugError(
            f"results cannot be combined: {name} is {list(values[0].shape)} in one and {list(other_value.shape)} in"
            " another,"
            f" and only axis {axis}, the examples, may differ. Prompts of different lengths are prepared in one batch."
        )
    return torch.cat(values, dim=axis)


def _lengthened(values: list[Any], depth: int) -> Any:
    """Nested texts, joined at a depth."""
    if depth == 0:
        return type(values[0])(item for value in values for item in value)
    return type(values[0])(_lengthened(list(items), depth - 1) for items in zip(*values, strict=True))


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return torch.equal(value, other)
    return type(value) is type(other) and bool(value == other)
