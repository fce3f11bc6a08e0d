"""Given answers behind their prompts (teacher forcing): where their tokens are, and how probable each is.

The work that `grounding`, `modality_interaction` and `neuron_ablation` share. The logits that are read lie one position
before each token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.interventions.ablation_run import Example
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput


def refuse_without_answers(examples: Sequence[Example]) -> None:
    """Refuse examples whose answer is no text with something in it.

    Raises:
        LensplugError: If there is such an example, or none at all.
    """
    if not examples:
        raise LensplugError("there are no examples.")
    for example in examples:
        if not isinstance(example.answer, str):
            raise LensplugError(f"the answer {example.answer!r} is not a text: give the words of the answer.")
        if not example.answer:
            raise LensplugError(f"the example {example.text!r} has no answer: give the words of one.")


def answer_positions(
    inputs: MultimodalInput,
) -> tuple[Int[Tensor, "batch token"], Bool[Tensor, "batch token"]]:
    """The positions of each answer's tokens in order, and which of these there are: answers differ in length."""
    answered = inputs.modality.mask("generated")
    count = answered.sum(dim=1)
    longest = int(count.max())
    in_order = (~answered).long().argsort(dim=1, stable=True)[:, :longest]
    exists = torch.arange(longest, device=count.device) < count[:, None]
    return torch.where(exists, in_order, in_order[:, :1]), exists


def answer_texts(inputs: MultimodalInput) -> tuple[tuple[str, ...], ...]:
    """The tokens of each answer as texts."""
    answered = inputs.modality.mask("generated").tolist()
    return tuple(
        tuple(text for text, chosen in zip(tokens, row, strict=True) if chosen)
        for tokens, row in zip(inputs.str_tokens, answered, strict=True)
    )


def log_probabilities(
    logits: Float[Tensor, "batch token d_vocab"],
    inputs: MultimodalInput,
    positions: Int[Tensor, "batch token"],
    exists: Bool[Tensor, "batch token"],
) -> Float[Tensor, "batch token"]:
    """The log-probability of the token at each position, in nats; NaN after the end of a shorter answer.

    Args:
        logits: Those one position before each.
        inputs: What was run.
        positions: From `answer_positions`.
        exists: Likewise.
    """
    tokens = inputs.tokens.gather(1, positions).to(logits.device)
    chosen = logits.float().log_softmax(dim=-1).gather(2, tokens[..., None])[..., 0]
    return chosen.cpu().masked_fill(~exists.cpu(), torch.nan)


def lengthened(values: Float[Tensor, "*axes token"], length: int) -> Float[Tensor, "*axes other"]:
    """NaN behind the last token of shorter answers."""
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]), value=torch.nan)
