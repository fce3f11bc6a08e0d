"""The model's answer, written by the wrapped core, and the input that it makes with its prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lensplug.core import LanguageCore
from lensplug.errors import LensplugError
from lensplug.inputs import MultimodalInput
from lensplug.tokens import token_texts
from lensplug.variants import continued


@dataclass(frozen=True)
class Answer:
    """What the model wrote."""

    text: list[str]
    """For each example, without special tokens."""
    tokens: Int[Tensor, "batch new"]
    """The new tokens; padded at the right where an answer ended early."""
    inputs: MultimodalInput
    """Prompt and answer as one input, the answer labelled "generated"."""


def generate(
    model: Any, hf_model: Any, core: LanguageCore, tokenizer: Any, inputs: MultimodalInput, max_new_tokens: int
) -> Answer:
    """The answer of a TransformerLens model, greedily, until an end-of-turn token of the Hugging Face model.

    Raises:
        LensplugError: If no token is asked for.
    """
    if max_new_tokens < 1:
        raise LensplugError(f"max_new_tokens is {max_new_tokens}, expected at least 1.")
    stops = _stop_tokens(hf_model, tokenizer)
    with torch.no_grad():
        tokens = model.generate(
            inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            stop_at_eos=bool(stops),
            eos_token_id=stops,
            return_type="tokens",
            verbose=False,
        )[:, inputs.tokens.shape[1] :]
    ended = torch.isin(tokens, torch.tensor(stops, device=tokens.device, dtype=tokens.dtype)).cumsum(1) > 0
    generated = torch.ones_like(ended)
    generated[:, 1:] = ~ended[:, :-1]  # the token that ends an answer still belongs to it
    text = [_decoded(row[own], tokenizer) for row, own in zip(tokens, generated, strict=True)]
    embeds = core.decoder.embed_tokens(tokens).detach()
    answered = inputs.appended(tokens, embeds, generated, token_texts(tokens, tokenizer))
    if core.beside is not None:
        model_inputs, beside = continued(hf_model, core, inputs, tokens, generated)
        answered = replace(answered, model_inputs=model_inputs, decoder_inputs=beside)
    return Answer(text, tokens, answered)


def _stop_tokens(hf_model: Any, tokenizer: Any) -> list[int]:
    stops = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    if stops is None:
        stops = getattr(tokenizer, "eos_token_id", None)
    return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)


def _decoded(tokens: Int[Tensor, " new"], tokenizer: Any) -> str:
    if tokenizer is None:
        return " ".join(map(str, tokens.tolist()))
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
