"""What a full model does around its decoder, asked of the model itself: for cores that no table knows.

It runs once on a few words. What its decoder is called with says whether positions have several parts, or a mask is
more than a row for each example. What it returns, beside what the head makes of the decoder's output, says by which
number logits are multiplied (Granite, Cohere), whether a soft cap is on them, and which words are never said
(Chameleon's of pictures).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from lensplug.errors import LensplugError
from lensplug.hf.attention_choice import sdpa
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.lead import Lead, ordinary_words
from lensplug.hf.seam import DEEPSTACK, decoder_arguments
from lensplug.patches.core_parts import Asked

WORDS = 8
ENOUGH = 1e-3
"""How far a measured number may be from one of the configuration's, as a fraction."""


def asked_of(hf_model: Any, core: LanguageCore, lead: Lead) -> LanguageCore:
    """The core, with what its model says when it is asked.

    Args:
        hf_model: The full model.
        core: Its language core.
        lead: What words have to stand behind for it.

    Raises:
        LensplugError: If the model does not run on them, or makes something else of logits.
    """
    row = ordinary_words(core, WORDS)
    model_inputs = lead.before([row, row], core)
    # With padding, which shows what masks a model makes; at the end, where no word sees it.
    model_inputs["attention_mask"][1, -2:] = 0
    arguments = decoder_arguments(hf_model, core, model_inputs)
    try:
        scale, cap, forbidden = _logits(hf_model, core, model_inputs)
    except LensplugError:
        raise
    except Exception as error:
        why = str(error).splitlines()[0][:200] if str(error) else ""
        raise LensplugError(
            f"{type(hf_model).__name__} does not run on {_said(lead)}, as transformers wrote it"
            f" ({type(error).__name__}: {why}): nothing can be compared with it."
        ) from error
    kept = {name: value for name, value in arguments.items() if value is not None}
    return replace(core, asked=Asked(kept, _beside(hf_model, core, kept), scale, cap, forbidden))


def _said(lead: Lead) -> str:
    return f"words behind one {lead.kind}" if lead.kind else "words alone"


def _beside(hf_model: Any, core: LanguageCore, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    positions, mask = arguments.get("position_ids"), arguments.get("attention_mask")
    makes_parts = any(hasattr(part, "get_rope_index") for part in (hf_model, getattr(hf_model, "model", None)))
    given = {
        "attention_mask": mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2),
        "position_ids": makes_parts or (isinstance(positions, Tensor) and positions.ndim > 2),
        "per_layer_inputs": arguments.get("per_layer_inputs") is not None
        and hasattr(core.decoder, "get_per_layer_inputs"),
        "deepstack": core.n_deepstack > 0 and DEEPSTACK[1] in signature(type(core.decoder).forward).parameters,
    }
    return tuple(name for name, is_given in given.items() if is_given)


def _logits(
    hf_model: Any, core: LanguageCore, model_inputs: Mapping[str, Any]
) -> tuple[float, float | None, tuple[int, ...]]:
    """By which number the model multiplies what its head makes of the decoder's output; its cap; forbidden words."""
    outputs: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    handle = core.decoder.register_forward_hook(note)
    try:
        with torch.no_grad(), sdpa(core):
            made = hf_model(**model_inputs, use_cache=False).logits
            plain = core.head(outputs[0]).double()
    finally:
        handle.remove()
    is_forbidden = (made <= torch.finfo(made.dtype).min).flatten(0, -2).all(dim=0)
    forbidden = tuple(is_forbidden.nonzero()[:, 0].tolist())
    logits = made.double()
    cap = getattr(core.text_config, "final_logit_softcapping", None)
    if cap is not None:
        near = logits.clamp(-cap * (1 - 1e-6), cap * (1 - 1e-6)) / cap
        logits = cap * torch.atanh(near)
    usual = ~is_forbidden & (plain.abs() > 0)
    scale = float((logits[usual] * plain[usual]).sum() / plain[usual].square().sum())
    for known in (1.0, *_numbers(core.text_config)):
        if abs(scale - known) < ENOUGH * abs(known):
            return known, cap, forbidden
    apart = float((logits - scale * plain)[usual].abs().max() / plain[usual].abs().max())
    if apart > ENOUGH:
        raise LensplugError(
            f"{type(hf_model).__name__} makes logits of something else than its head's reading of the decoder's output"
            f" (apart by {apart:.1e})."
        )
    return scale, cap, forbidden


def _numbers(config: Any) -> list[float]:
    """Numbers of a configuration that logits may be multiplied or divided by."""
    named = [value for name, value in vars(config).items() if isinstance(value, float | int) and "scal" in name]
    named += [value for name, value in vars(config).items() if isinstance(value, float | int) and "multiplier" in name]
    return [number for value in named if value for number in (float(value), 1 / float(value))]
