"""Teacher forcing: an answer passed by the user instead of a generated one.

What did the model look at when it came to write "Red", and what would make it likelier? With the answer behind the
prompt, labelled "generated", every analysis of an answer of `lens.generate` works on it. Its words are tokenised as
they stand, as a `target` is, and nothing is added: an end-of-turn token counts only where the text has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.hf.language_core import LanguageCore
from lensplug.inputs.edited_inputs import continued
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.tokens import token_texts


def tokens_of(
    answers: str | Sequence[str], inputs: MultimodalInput, core: LanguageCore, tokenizer: Any, n_ctx: int
) -> tuple[MultimodalInput, Int[Tensor, "batch new"], Bool[Tensor, "batch new"]]:
    """The inputs, one for each answer, its tokens padded at the right, and which of these are its own.

    Raises:
        LensplugError: If there is not one answer for each prompt, one has no tokens or holds a placeholder, the prompt
            is padded at its right, or both together leave the context.
    """
    if tokenizer is None:
        raise LensplugError("an answer needs a tokenizer, and this lens has none: lensplug.wrap(model, tokenizer).")
    texts = [answers] * len(inputs) if isinstance(answers, str) else list(answers)
    if len(inputs) == 1 and len(texts) > 1:
        inputs = inputs.expand(len(texts))
    if len(texts) != len(inputs):
        raise LensplugError(f"{len(texts)} answers for {len(inputs)} prompts: give one for each, or one for all.")
    if not bool(inputs.attention_mask[:, -1].all()):
        raise LensplugError(
            "the prompts are padded at their right, where the answer begins: lens.prepare pads at the left; for"
            " lens.encode give the processor padding_side='left'."
        )
    pieces = [_pieces(text, core, tokenizer) for text in texts]
    length = max(map(len, pieces))
    if inputs.shape[1] + length > n_ctx:
        raise LensplugError(
            f"prompt and answer are {inputs.shape[1] + length} positions, but the model has a context of {n_ctx}."
        )
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else pieces[0][0]
    rows = [[*is_answer, *[padding] * (length - len(is_answer))] for is_answer in pieces]
    is_answer = [[True] * len(is_answer) + [False] * (length - len(is_answer)) for is_answer in pieces]
    tokens = torch.tensor(rows, device=inputs.device, dtype=inputs.dtype)
    return inputs, tokens, torch.tensor(is_answer, device=inputs.device)


def behind(
    hf_model: Any,
    core: LanguageCore,
    tokenizer: Any,
    inputs: MultimodalInput,
    tokens: Int[Tensor, "batch new"],
    generated: Bool[Tensor, "batch new"],
) -> MultimodalInput:
    """Prompt and answer as one input; positions where `generated` is False are padding."""
    with torch.inference_mode(False), torch.no_grad():
        embeds = core.decoder.embed_tokens(tokens).detach()
    answered = inputs.appended(tokens, embeds, generated, token_texts(tokens, tokenizer))
    if not core.beside:
        return answered
    model_inputs, decoder_inputs = continued(hf_model, core, inputs, tokens, generated)
    return replace(answered, model_inputs=model_inputs, decoder_inputs=decoder_inputs)


def _pieces(text: Any, core: LanguageCore, tokenizer: Any) -> list[int]:
    if not isinstance(text, str):
        raise LensplugError(f"an answer is a {type(text).__name__}, expected a text.")
    pieces = cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"])
    if not pieces:
        raise LensplugError(f"the answer {text!r} has no tokens: give at least a word, or no answer.")
    if placeholders := [kind for kind, token in core.placeholder_ids.items() if token in pieces]:
        raise LensplugError(f"the answer {text!r} holds the placeholder of an {placeholders[0]}: an answer is words.")
    return pieces
