"""Which positions are sinks, as every analysis that reads attention takes it, and attention without them.

`sinks=` is the same parameter everywhere: "first", the first position that is not padding; what `analysis.sinks` found;
positions, or a mask; None, no position. A sink that is left out gets no attention, and the rest of each row is read as
if it were all: rows sum to 1 again, to 0 where all of a row was on sinks. `head_specialization` and `modality_null`
take "special" too, and keep sinks as a class of their own unless they are told to leave them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lensplug.analysis.attention.found_sinks import Sinks
from lensplug.errors import LensplugError
from lensplug.validation.arguments import described

LeftOut = Literal["first"] | Sinks | Sequence[Any] | np.ndarray | Shaped[Tensor, "*axes"] | None
"""Sinks to leave out: "first", a result of `analysis.sinks`, positions, a mask `[batch pos]`; None for no position."""


def left_out(
    sinks: LeftOut, mask: Int[Tensor, "batch pos"], *, first: bool = False, first_option: str = "exclude_first"
) -> tuple[Bool[Tensor, "batch pos"] | None, str]:
    """The positions that an analysis leaves out, if any; and how its result says so.

    Args:
        sinks: As it was given.
        mask: 1 where there is no padding.
        first: Whether the analysis was told by its older option to leave out the first position.
        first_option: That option's name.

    Raises:
        LensplugError: If they are no choice of sinks, or both ways of choosing were taken.
    """
    if first_is_meant(sinks, first, first_option):
        return first_attended(mask), "first position left out"
    if sinks is None:
        return None, "first position kept"
    found, words = found_or_given(sinks, mask)
    return found, f"sinks ({words}) left out"


def first_is_meant(sinks: LeftOut, first: bool, first_option: str = "exclude_first") -> bool:
    """Whether the first position is to be left out, by either way of saying so.

    Raises:
        LensplugError: If both were taken.
    """
    if first and sinks is not None:
        raise LensplugError(
            f"{first_option}=True leaves out the first position, and sinks says what to leave out: give sinks alone,"
            " sinks='first' for the first position."
        )
    return first or isinstance(sinks, str)


def found_or_given(sinks: Any, mask: Int[Tensor, "batch pos"]) -> tuple[Bool[Tensor, "batch pos"], str]:
    """The mask of sinks that were found, or given as positions or as a mask; and what they are, in words.

    Raises:
        LensplugError: If they are something else, or of another batch.
    """
    if isinstance(sinks, Sinks):
        if sinks.mask.shape != mask.shape:
            raise LensplugError(
                f"sinks are of {list(sinks.mask.shape)} positions, this is of {list(mask.shape)}: find them in the"
                " cache of these inputs, analysis.sinks(cache, inputs)."
            )
        return sinks.mask.to(mask.device) & mask.bool(), f"found by {sinks.in_words}"
    shape = list(mask.shape)
    expected = f"expected 'first', what analysis.sinks found, positions, None, or a mask of the shape {shape}"
    try:
        given = torch.as_tensor(sinks)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LensplugError(f"sinks is {described(sinks)}, {expected}.") from error
    if given.ndim == 1 and given.numel() and not given.is_floating_point() and given.dtype != torch.bool:
        return _positions(given, mask, expected), f"positions {', '.join(map(str, given.tolist()))}"
    if given.shape != mask.shape or not bool(((given == 0) | (given == 1)).all()):
        raise LensplugError(f"sinks has the shape {list(given.shape)}, {expected} that has 1 where a sink is, else 0.")
    return given.to(mask.device).bool() & mask.bool(), f"{int(given.sum())} positions given"


def _positions(given: Tensor, mask: Int[Tensor, "batch pos"], expected: str) -> Bool[Tensor, "batch pos"]:
    """Positions counted from the first, or from the last, that is not padding, in every example."""
    if len(set(given.tolist())) < len(given):  # a mask of one example, perhaps
        raise LensplugError(f"sinks has a position twice, {described(given.tolist())}: {expected}.")
    is_sink = torch.zeros_like(mask, dtype=torch.bool)
    for example, real in enumerate(mask.bool()):
        places = real.nonzero()[:, 0]
        if not bool(((given >= -len(places)) & (given < len(places))).all()):
            raise LensplugError(
                f"sinks has {described(given.tolist())}, and example {example} has {len(places)} positions that are not"
                f" padding, counted from 0: {expected}."
            )
        is_sink[example, places[given.to(places.device)]] = True
    return is_sink


def first_attended(mask: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """The first position of each example that is not padding."""
    is_real = mask.bool()
    first: Tensor = is_real & (is_real.long().cumsum(dim=1) == 1)
    return first


def without(
    attention: Float[Tensor, "batch *rest key"], is_left_out: Bool[Tensor, "batch key"] | None
) -> Float[Tensor, "batch *rest key"]:
    """Rows of attention without the sinks, which sum to 1 again, or to 0 where nothing is left."""
    if is_left_out is None:
        return attention
    shape = (len(is_left_out), *(1 for _ in attention.shape[1:-1]), is_left_out.shape[1])
    rest = attention.masked_fill(is_left_out.to(attention.device).reshape(shape), 0.0)
    total = rest.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, rest / total, 0.0)
