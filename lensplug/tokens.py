"""Between words and token ids: the text of a token, the one token of a word."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from lensplug.errors import LensplugError


def token_texts(tokens: Int[Tensor, "batch pos"], tokenizer: Any) -> list[list[str]]:
    """The text of every token; its number where there is no tokenizer."""
    if tokenizer is None:
        return [[str(token) for token in row] for row in tokens.tolist()]
    texts = {token: str(tokenizer.decode([token])) for token in set(tokens.flatten().tolist())}
    return [[texts[token] for token in row] for row in tokens.tolist()]


def single_token(word: str, tokenizer: Any) -> int:
    """The id of a word that is one token; white space at its front counts ("Red" is not " Red").

    Raises:
        LensplugError: If it is several tokens, or none; its pieces are named.
    """
    if tokenizer is None:
        raise LensplugError(f"the target is the word {word!r}, but there is no tokenizer: give a token id.")
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = [tokenizer.decode([token]) for token in ids]
        raise LensplugError(
            f"{word!r} is {len(ids)} tokens ({', '.join(map(repr, pieces))}), expected one: choose one of its pieces,"
            " or give a token id."
        )
    return int(ids[0])
