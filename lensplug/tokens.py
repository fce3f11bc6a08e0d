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


def find_text(text: str, str_tokens: list[str]) -> range | None:
    """The positions that a piece of text stands at, its last occurrence; None where it is not there.

    White space does not count: some tokenizers decode a word alone without the space before it. A token
    that lies only partly in the text counts.
    """
    owners = [pos for pos, token in enumerate(str_tokens) for _ in "".join(token.split())]
    characters = "".join("".join(token.split()) for token in str_tokens)
    wanted = "".join(text.split())
    start = characters.rfind(wanted) if wanted else -1
    return None if start < 0 else range(owners[start], owners[start + len(wanted) - 1] + 1)
