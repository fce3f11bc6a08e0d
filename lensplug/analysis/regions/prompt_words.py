"""The words of a prompt: what the user wrote, without what the model's chat template puts around it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensplug.analysis.protocols import Lens
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.words import join_pieces

CHUNK = 8192
"""Tokens whose embeddings are made at once."""


def words_of(lens: Lens, inputs: MultimodalInput) -> list[tuple[str, list[int]]]:
    """Each word and its positions, in their order.

    What the template writes is known from a prompt without words and with the same media: what both begin with, and
    what both end with, is not the user's. Special tokens and media never are.

    Args:
        lens: Prepares that prompt.
        inputs: One example, from `prepare`.

    Raises:
        LensplugError: If there is no word.
    """
    row = inputs.tokens[0][inputs.modality.mask("pad")[0].logical_not()].tolist()
    first = inputs.tokens.shape[1] - len(row)
    if not bool(inputs.attention_mask[0, first:].all()):
        raise LensplugError("the prompt is padded at its right: lens.prepare pads at the left.")
    is_word = inputs.modality.mask("text")[0] & ~inputs.modality.special[0]
    asked = [
        token
        for token, written in zip(row, inputs.modality.mask("generated")[0, first:].tolist(), strict=True)
        if not written
    ]
    before, behind = _template(lens, inputs, asked)
    is_word[: first + before] = False
    is_word[first + len(asked) - behind :] = False
    pieces = inputs.str_tokens[0]
    if lens.tokenizer is not None:
        pieces = [str(piece) for piece in lens.tokenizer.convert_ids_to_tokens(inputs.tokens[0].tolist())]
    groups = join_pieces(pieces)
    found: dict[int, list[int]] = {}
    for position in is_word.nonzero()[:, 0].tolist():
        found.setdefault(int(groups.of_position[position]), []).append(position)
    named = [("".join(inputs.str_tokens[0][position] for position in where).strip(), where) for where in found.values()]
    words = [(name, where) for name, where in named if name]
    if not words:
        raise LensplugError("the prompt has no words beside those of its chat template: give texts of it as regions.")
    return words


def _template(lens: Lens, inputs: MultimodalInput, asked: list[int]) -> tuple[int, int]:
    """How many tokens at the front and at the end of a prompt are those of one without words."""
    media: dict[str, Any] = {
        name: [list(getattr(inputs, name)[0])] for name in ("images", "videos", "audio") if any(getattr(inputs, name))
    }
    try:
        empty = lens.prepare([""], **media).tokens[0].tolist()
    except LensplugError:  # a model without a template: all is the user's
        return 0, 0
    shortest = min(len(empty), len(asked))
    before = next((index for index in range(shortest) if empty[index] != asked[index]), shortest)
    rest = shortest - before
    behind = next((index for index in range(rest) if empty[-1 - index] != asked[-1 - index]), rest)
    return before, behind


def mean_embedding(lens: Lens) -> Float[Tensor, " d_model"]:
    """The mean of the embeddings of all tokens: what stands in the place of a word that is taken away.

    It says nothing about which word there was, and is as long as embeddings that agree in nothing are.
    """
    table = lens.core.decoder.embed_tokens
    count = table.weight.shape[0]
    total = torch.zeros(table.weight.shape[1], dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, count, CHUNK):
            ids = torch.arange(start, min(start + CHUNK, count), device=table.weight.device)
            total += table(ids).double().sum(dim=0).cpu()
    mean: Tensor = (total / count).float()
    return mean


def without_words(
    lens: Lens, inputs: MultimodalInput, words: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_model"]:
    """The embeddings of inputs with those of words replaced by the mean of all tokens."""
    return torch.where(words[..., None].to(inputs.embeds.device), mean_embedding(lens).to(inputs.embeds), inputs.embeds)
