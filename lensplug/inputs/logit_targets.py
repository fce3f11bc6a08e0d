"""Targets: a number computed from a few logits (a logit, a logit difference, an answer), as users specify it.

A token (a word that is one token, or an id), the difference of two, or every token of an answer that the model wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.indices import Position, resolve_position
from lensplug.positions.tokens import single_token


@runtime_checkable
class Written(Protocol):
    """An answer: `lens.generate(inputs)`."""

    tokens: Int[Tensor, "batch new"]
    inputs: MultimodalInput


Token = str | int | Tensor
"""A word that is one token, a token id, or ids `[batch]`."""
LogitTarget = Token | tuple[Token, Token] | Written | MultimodalInput
"""What a logit target can be; inputs represent the answer that they contain."""
Target = LogitTarget | Callable[[Tensor], Tensor]
"""A function makes one number of all logits."""


@dataclass(frozen=True)
class Terms:
    """A weighted sum of logits at a few positions of each example."""

    rows: Int[Tensor, "batch row"]
    """Where they are read, from the left."""
    ids: Int[Tensor, "batch row term"]
    weights: Float[Tensor, "batch row term"]
    """0 where an example's answer has ended."""

    @property
    def is_difference(self) -> bool:
        """Whether a number that is added to all logits of a position changes nothing."""
        return not bool(self.weights.sum(dim=-1).any())

    def of(self, values: Float[Tensor, "batch row d_vocab"]) -> Float[Tensor, " batch"]:
        """The sum for each example, of logits or log-probabilities at the rows."""
        # Copies: what was made in inference mode cannot be kept for a backward pass.
        ids, weights = self.ids.to(values.device).clone(), self.weights.to(values.device).clone()
        return (values.gather(2, ids).float() * weights).sum(dim=(1, 2))


def terms_of(
    target: LogitTarget, position: Position, inputs: MultimodalInput, tokenizer: Any, vocabulary: int
) -> Terms:
    """The logits that a target means; refused before the model runs.

    Args:
        target: A token; a pair, for the difference of two logits; or an answer, or the inputs that hold it, for the sum
            over its tokens.
        position: Where a token's logit is read: the place before the one it is written to.
        inputs: What will be run.
        tokenizer: For words.
        vocabulary: The number of tokens.

    Raises:
        LensplugError: If a target word is not exactly one token, the position is out of range, or the answer is
            of other inputs.
    """
    if isinstance(target, Written | MultimodalInput):
        return _of_answer(target, inputs)
    return token_terms(target, position, inputs.attention_mask, tokenizer, vocabulary)


def token_terms(
    target: Token | tuple[Token, Token],
    position: Position,
    attention_mask: Int[Tensor, "batch pos"],
    tokenizer: Any,
    vocabulary: int,
) -> Terms:
    """The logits that a token or a pair of them means, for what knows no inputs: a cache.

    Args:
        target: A token; a pair, for the difference of two logits.
        position: Where a token's logit is read.
        attention_mask: 1 = attended.
        tokenizer: For words.
        vocabulary: The number of tokens.

    Raises:
        LensplugError: If a target word is not exactly one token, or the position is out of range.
    """
    rows = resolve_position(position, attention_mask)[:, None]
    if isinstance(target, tuple) and len(target) == 2:
        ids = torch.stack([_ids(token, len(rows), tokenizer, vocabulary) for token in target], dim=-1)
        return Terms(rows, ids[:, None], torch.tensor([1.0, -1.0]).expand(len(rows), 1, 2))
    if not isinstance(target, str | int | Tensor):
        raise LensplugError(
            f"target is a {type(target).__name__}, expected a word that is one token, a token id, a tensor of ids"
            " [batch], a pair of them (the difference of two logits), an answer (lens.generate, lens.with_answer), or,"
            " for gradients, a function logits -> scalar."
        )
    ids = _ids(target, len(rows), tokenizer, vocabulary)
    return Terms(rows, ids[:, None, None], torch.ones(len(rows), 1, 1))


def _of_answer(answer: Written | MultimodalInput, inputs: MultimodalInput) -> Terms:
    """Each written token at the position before its own."""
    answer_inputs = answer if isinstance(answer, MultimodalInput) else answer.inputs
    if not torch.equal(answer_inputs.tokens, inputs.tokens):
        raise LensplugError("the target is an answer to other inputs: run on answer.inputs, which hold the answer.")
    if isinstance(answer, MultimodalInput):
        columns = answer_inputs.modality.mask("generated").any(dim=0).nonzero()[:, 0].tolist()
        if not columns or columns[0] == 0:
            raise LensplugError(
                "the target is inputs that hold no answer behind a prompt: lens.prepare(..., answer='Red'), or"
                " lens.generate(inputs).inputs."
            )
        n_new = answer_inputs.tokens.shape[1] - columns[0]
    else:
        n_new = answer.tokens.shape[1]
    is_generated = inputs.modality.mask("generated")[:, -n_new:]
    rows = torch.arange(inputs.tokens.shape[1] - n_new - 1, inputs.tokens.shape[1] - 1).expand(len(is_generated), -1)
    ids = answer_inputs.tokens[:, -n_new:, None]
    return Terms(rows.to(is_generated.device), ids.to(is_generated.device), is_generated[:, :, None].float())


def _ids(token: Token, batch: int, tokenizer: Any, vocabulary: int) -> Int[Tensor, " batch"]:
    ids = torch.as_tensor(single_token(token, tokenizer) if isinstance(token, str) else token)
    if not ids.numel():
        raise LensplugError("target is empty: give a token, or one for each example.")
    if ids.ndim > 1 or (ids.ndim == 1 and len(ids) != batch):
        raise LensplugError(f"target has the shape {list(ids.shape)}, expected one id or [{batch}], one an example.")
    is_integer = not ids.is_floating_point() and ids.dtype != torch.bool
    if not is_integer or int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise LensplugError(f"target ids must be whole numbers from 0 to {vocabulary - 1}, got {ids.tolist()}.")
    return ids.long().expand(batch)
