"""The words of a prompt as regions, and what stands in the place of one that is taken away."""

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


def words_of(tokenizer: Any, inputs: MultimodalInput) -> list[tuple[str, list[int]]]:
    """Each word of the user and its positions, in their order.

    Args:
        tokenizer: Marks where words begin.
        inputs: One example, from `prepare`.

    Raises:
        LensplugError: If which words are the user's is not known, or there is none.
    """
    is_word = inputs.modality.user_words
    if is_word is None or not bool(is_word[0].any()):
        raise LensplugError(
            "which words of these inputs are the user's is not known (lens.prepare knows), or there are none: give"
            " texts of the prompt as regions, ['the color', ...]."
        )
    pieces = inputs.str_tokens[0]
    if tokenizer is not None:
        pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(inputs.tokens[0].tolist())]
    groups = join_pieces(pieces)
    found: dict[int, list[int]] = {}
    for position in is_word[0].nonzero()[:, 0].tolist():
        found.setdefault(int(groups.of_position[position]), []).append(position)
    named = [("".join(inputs.str_tokens[0][position] for position in where).strip(), where) for where in found.values()]
    return [(name, where) for name, where in named if name]


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
