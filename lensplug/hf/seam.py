"""The seam: run a full multimodal model up to the call of its decoder, and keep what it was about to receive.

The vision tower, projector, tiling, packing and merging are the model's own code, never a copy of it,
and the decoder does not run. A forward pre-hook sees the decoder's keyword arguments and stops the pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensplug.errors import LensplugError
from lensplug.hf.attention_choice import sdpa
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.unread import merged_inside, read_ones

UNREAD = {
    "use_cache", "return_dict", "output_attentions", "output_hidden_states", "output_router_logits", "cache_position",
    "logits_to_keep",
}  # fmt: skip
"""Keyword arguments of a decoder that do not change what it computes from its embeddings."""


DEEPSTACK = ("visual_pos_masks", "deepstack_visual_embeds")
"""In which arguments a decoder is given features that it adds between its layers, and at which positions."""


@dataclass(frozen=True)
class Seam:
    """What the decoder was about to receive."""

    embeds: Tensor
    """[batch pos d_model], text, image and audio merged."""
    attention_mask: Tensor
    """[batch pos], 1 = attended."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Additional decoder inputs, for cores that take them (`LanguageCore.beside`)."""


class _Stop(BaseException):
    """Ends the pass at the decoder. Not an Exception, so that no handler of the model's swallows it."""

    def __init__(self, kwargs: Mapping[str, Any]) -> None:
        self.kwargs = kwargs


def run_to_seam(hf_model: Any, core: LanguageCore, model_inputs: Mapping[str, Any]) -> Seam:
    """Run `hf_model(**model_inputs)` up to its decoder.

    Args:
        hf_model: The full model.
        core: Its language core.
        model_inputs: What the full model takes: tokens, mask, pixel values, ...

    Raises:
        LensplugError: If the model refuses its inputs (numbers of placeholders and features that
            differ, say), or gives its decoder something that a causal core with one-dimensional
            positions cannot take.
    """
    return _read(decoder_arguments(hf_model, core, model_inputs), core, model_inputs.get("attention_mask"))


def decoder_arguments(hf_model: Any, core: LanguageCore, model_inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """All keyword arguments that `hf_model(**model_inputs)` calls its decoder with.

    Raises:
        LensplugError: If the model refuses its inputs, or never calls its decoder.
    """
    this_thread = threading.get_ident()

    def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == this_thread:  # another one may call the model itself
            raise _Stop(kwargs)

    try:
        # A mask of the model's own has the form that its attention asks for.
        with torch.no_grad(), sdpa(core), _before(core.decoder, stop):
            hf_model(**model_inputs, use_cache=False)
    except _Stop as reached:
        return reached.kwargs
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        why = str(error) if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}, {error}"
        raise LensplugError(f"{type(hf_model).__name__} refused its inputs: {why}") from error
    raise LensplugError(f"{type(hf_model).__name__} never called its decoder: it has no seam to read.")


@contextmanager
def _before(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    """A forward pre-hook for the length of a block, also if an interrupt comes at any place in it."""

    def remove() -> None:
        for number in [number for number, registered in module._forward_pre_hooks.items() if registered is hook]:
            del module._forward_pre_hooks[number]
            module._forward_pre_hooks_with_kwargs.pop(number, None)

    try:
        try:
            module.register_forward_pre_hook(hook, with_kwargs=True)
            yield
        finally:
            remove()
    finally:
        remove()


def _read(kwargs: Mapping[str, Any], core: LanguageCore, padding: Tensor | None) -> Seam:
    embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
    decoder_inputs = {name: kwargs.get(name) for name in core.beside}
    if "attention_mask" in core.beside:
        mask = padding
    known_names = {"inputs_embeds", "attention_mask", "position_ids", "input_ids", "cache", "past_key_values"} | UNREAD
    known_names |= set(core.beside)
    if "deepstack" in core.beside:
        known_names |= set(DEEPSTACK)
    extra = [name for name, value in kwargs.items() if name not in known_names and value is not None]
    if embeds is None and kwargs.get("input_ids") is not None:
        if extra and (embeds := merged_inside(core, kwargs, extra)) is not None:
            extra = []
        else:
            with torch.no_grad():
                embeds = core.decoder.embed_tokens(kwargs["input_ids"])  # a plain language model: nothing to merge
    if embeds is None:
        raise LensplugError("the decoder was called without inputs_embeds: there are no merged embeddings to read.")
    if "deepstack" in core.beside:
        decoder_inputs["deepstack"] = _deepstack(kwargs, embeds)
    if mask is None:
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise LensplugError(
            f"the model gives its decoder an attention mask of its own ({shape}), not one row per example: its"
            " attention is not plainly causal, and the core alone would compute something else."
        )
    if extra and (read := read_ones(core, kwargs, extra)):
        raise LensplugError(
            f"the model gives its decoder more than embeddings ({', '.join(sorted(read))}): the core alone cannot"
            " compute the same."
        )
    _refuse_other_positions(None if "position_ids" in core.beside else kwargs.get("position_ids"), mask)
    return Seam(embeds.detach(), mask.long(), decoder_inputs)


def _deepstack(kwargs: Mapping[str, Any], embeds: Tensor) -> Float[Tensor, "layer batch pos d_model"] | None:
    """What each of the first layers adds, with a place for every position; None where there is no image."""
    mask, features = (kwargs.get(name) for name in DEEPSTACK)
    if mask is None or features is None:
        return None
    added = embeds.new_zeros(len(features), *embeds.shape)
    for layer, of_layer in enumerate(features):
        added[layer][mask.to(embeds.device)] = of_layer.detach().to(embeds)
    return added


def _refuse_other_positions(position_ids: Tensor | None, mask: Tensor) -> None:
    """Rotary attention sees differences of positions: they must be those of a running count.

    TransformerLens counts attended positions, Hugging Face counts all where it is given none.
    """
    if position_ids is None:
        position_ids = torch.arange(mask.shape[1], device=mask.device)[None]
    if position_ids.ndim != 2:
        raise LensplugError(
            f"the decoder's positions have the shape {list(position_ids.shape)}, not one per token: rotary positions of"
            " several parts are not known of this core."
        )
    attended = mask.bool()
    empty = (~attended.any(dim=1)).nonzero()[:, 0].tolist()
    if empty:
        raise LensplugError(f"example {empty[0]} is nothing but padding: its attention_mask is 0 everywhere.")
    offset = position_ids.to(mask.device) - mask.cumsum(dim=1)
    first = offset.gather(1, attended.int().argmax(dim=1, keepdim=True))
    if bool(((offset != first) & attended).any()):
        raise LensplugError(
            "the attended positions are not counted one by one (a mask with holes, or packed sequences): only"
            " padding at the left or at the right can be wrapped exactly."
        )
