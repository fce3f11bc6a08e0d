"""A logit target for an analysis that is given a cache: which rows and tokens it means, checked against what ran."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.cache.activation_cache import ActivationCache, known
from lensplug.cache.reading import attended
from lensplug.errors import LensplugError
from lensplug.inputs.logit_targets import LogitTarget, Terms, Written, terms_of, token_terms
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.indices import Position
from lensplug.positions.tokens import token_texts
from lensplug.validation.masks import Mask


def terms_of_cache(
    cache: ActivationCache,
    target: LogitTarget,
    position: Position,
    shape: tuple[int, int],
    attention_mask: Mask | None,
) -> Terms:
    """The logits that a target means in the run that made a cache.

    Args:
        cache: With its model.
        target: A token, a pair, or an answer.
        position: Where a token's logit is read.
        shape: The number of examples and of positions.
        attention_mask: As it was given.

    Raises:
        LensplugError: If a word is not one token, a position is out of range, or an answer is of other inputs.
    """
    model = cache.model
    tokenizer, vocabulary = getattr(model, "tokenizer", None), model.unembed.W_U.shape[1]
    if isinstance(target, Written | MultimodalInput):
        inputs = target if isinstance(target, MultimodalInput) else target.inputs
        _refuse_other_inputs(cache, inputs, shape)
        terms = terms_of(target, position, inputs, tokenizer, vocabulary)
        # Behind the end of a shorter answer there is padding, which no run keeps: its weight is 0 at any position.
        counts = (terms.weights != 0).any(dim=-1)
        return replace(terms, rows=torch.where(counts, terms.rows, terms.rows[:, :1]))
    mask = attended(cache, shape, attention_mask, torch.device("cpu"), positions=position)
    return token_terms(target, position, mask, tokenizer, vocabulary)


def _refuse_other_inputs(cache: ActivationCache, inputs: MultimodalInput, shape: tuple[int, int]) -> None:
    texts = known(cache, "str_tokens")
    same = tuple(inputs.tokens.shape) == tuple(shape)
    if same and texts is not None:
        same = tuple(map(tuple, inputs.str_tokens)) == texts
    if not same:
        raise LensplugError(
            "the target is an answer to other inputs than the cache is of: run on answer.inputs, which hold the answer."
        )


def texts_of_target(terms: Terms, tokenizer: Any) -> tuple[str, ...]:
    """A target in words, for each example: "Red", "Red - Blue", or the answer."""
    texts = []
    for ids, weights in zip(terms.ids, terms.weights, strict=True):
        words = token_texts(ids, tokenizer)
        texts.append(_joined(words, weights))
    return tuple(texts)


def _joined(words: list[list[str]], weights: Float[Tensor, "row term"]) -> str:
    if len(words) == 1:
        signs: Int[Tensor, " term"] = weights[0].sign().long()
        pieces = [f"{' - ' if sign < 0 else ''}{word}" for word, sign in zip(words[0], signs.tolist(), strict=True)]
        return "".join(pieces)
    return "".join(word for row, weight in zip(words, weights.tolist(), strict=True) for word in row if weight[0])
