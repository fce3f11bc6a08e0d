"""Positions selected by modality: modality maps as users pass them, and masks by name.

Wherever a function asks which position is what, the inputs that were run say it as well as their map does; and wherever
positions are chosen or left out, the name of a modality means all of its positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.positions.modality_map import MODALITIES, MediumName, ModalityMap, ModalityName
from lensplug.validation.masks import Mask, as_mask


@runtime_checkable
class HasModality(Protocol):
    """Inputs with a modality map: `MultimodalInput`."""

    @property
    def modality(self) -> ModalityMap:
        """The modality map."""

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """Token ids."""

    @property
    def str_tokens(self) -> list[list[str]]:
        """Their texts."""


Modality = ModalityMap | HasModality
"""Which position is what: `inputs.modality`, or the inputs themselves."""
MEDIA: tuple[MediumName, ...] = get_args(MediumName)
PositionsName = ModalityName | Literal["media"]
"""The positions of a modality, or of "media": every image, video and audio position."""
NAMES: tuple[PositionsName, ...] = (*get_args(ModalityName), "media")
Where = PositionsName | Mask
"""Positions: a modality's name, several of them, "media" (every image, video and audio position), or a mask."""


def modality_of(given: Any, name: str = "modality") -> ModalityMap:
    """The modality map, passed directly or as part of inputs.

    Raises:
        LensplugError: If it is neither.
    """
    if isinstance(given, ModalityMap):
        return given
    if isinstance(given, HasModality):
        return given.modality
    hint = " (of an answer: answer.inputs)" if isinstance(getattr(given, "inputs", None), HasModality) else ""
    raise LensplugError(f"{name} is a {type(given).__name__}, expected inputs.modality, or the inputs{hint}.")


def mask_at(
    where: Where, given: Modality | None, shape: Sequence[int], name: str, *, against: str = "the inputs are"
) -> Bool[Tensor, "*axes"]:
    """The mask of positions that are chosen by name, or by a mask.

    Args:
        where: A modality's name, several, "media", or a mask of this shape.
        given: Whose positions; needed for names.
        shape: Shape of the mask, [batch pos].
        name: The argument's, for an error.
        against: What has this shape, for an error.

    Raises:
        LensplugError: If there is no such modality, or the mask does not fit.
    """
    names = named(where)
    if names is None:
        mask: Tensor = as_mask(where, shape, name, against=against)
        return mask
    if given is None:
        raise LensplugError(f"{name} is {where!r}, and nothing says which position is what: give a mask.")
    modality = modality_of(given)
    if unknown := [kind for kind in names if kind not in NAMES]:
        raise LensplugError(f"{name} is {unknown[0]!r}, expected one of {', '.join(map(repr, NAMES))}, or a mask.")
    kinds = [*MEDIA, *names] if "media" in names else names
    mask = torch.stack([modality.mask(kind) for kind in MODALITIES if kind in kinds]).any(dim=0)
    if tuple(mask.shape) != tuple(shape):
        raise LensplugError(f"the modality map is {list(mask.shape)}, {against} {list(shape)}: give the map of theirs.")
    return mask


def rows_at(where: str | Sequence[str], inputs: HasModality, name: str) -> Int[Tensor, "batch row"]:
    """The positions of a modality as indices, `[batch row]`.

    Raises:
        LensplugError: If there is no such modality, or examples have different numbers of its positions.
    """
    mask = mask_at(where, inputs, inputs.tokens.shape, name)
    counts = mask.sum(dim=1).tolist()
    if len(set(counts)) > 1 or not counts[0]:
        raise LensplugError(
            f"{name}={where!r} means {', '.join(map(str, counts))} positions of the examples, expected the same number,"
            f" at least 1, of each: run them one by one, or give {name}= a tensor [batch, position]."
        )
    return mask.nonzero()[:, 1].reshape(len(mask), -1)


def named(where: Any) -> tuple[str, ...] | None:
    """The names that are meant, whether there are such or not; None for what is no name."""
    if isinstance(where, str):
        return (where,)
    if isinstance(where, list | tuple | set | frozenset) and where and all(isinstance(name, str) for name in where):
        return tuple(where)
    return None
