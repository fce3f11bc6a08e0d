"""Between words and token ids: the text of a token, the one token of a word."""

from __future__ import annotations

from collections.abc import Sequence
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
            " give a token id, or an answer that holds it: target=lens.generate(inputs), on answer.inputs."
        )
    return int(ids[0])


def find_text(text: str, str_tokens: Sequence[str], tokens: Sequence[int] = (), tokenizer: Any = None) -> range | None:
    """The positions of the last occurrence of a text; None if it does not occur.

    White space does not count: some tokenizers decode a word alone without the space before it. A token
    that is only partly in the text counts.

    Args:
        text: What to find.
        str_tokens: The text of each position.
        tokens: Their ids: a character of several tokens ("🙂") is decoded from them together.
        tokenizer: For these.
    """
    characters, owners = characters_of(str_tokens, tokens, tokenizer)
    compact = "".join(text.split())
    start = characters.rfind(compact) if compact else -1
    return None if start < 0 else range(owners[start][0], owners[start + len(compact) - 1][1])


def characters_of(
    str_tokens: Sequence[str], tokens: Sequence[int], tokenizer: Any
) -> tuple[str, list[tuple[int, int]]]:
    """All positions as one text without white space, and for each character its positions, from and to.

    Args:
        str_tokens: The text of each position.
        tokens: Their ids, for characters of several tokens.
        tokenizer: For these.
    """
    pieces = [
        ("".join(piece.split()), start, stop) for piece, start, stop in _whole_characters(str_tokens, tokens, tokenizer)
    ]
    return "".join(piece for piece, _, _ in pieces), [(start, stop) for piece, start, stop in pieces for _ in piece]


LONGEST = 12
"""Tokens that are tried as one run of characters."""
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""What a part of a character is decoded to."""


def _whole_characters(str_tokens: Sequence[str], tokens: Sequence[int], tokenizer: Any) -> list[tuple[str, int, int]]:
    """The text of each position, from and to; positions that make a character only together are one piece."""
    pieces, start = [], 0
    while start < len(str_tokens):
        piece, stop = str_tokens[start], start + 1
        if UNKNOWN in piece and tokenizer is not None and len(tokens):
            for end in range(start + 2, min(start + LONGEST, len(str_tokens)) + 1):
                together = str(tokenizer.decode(list(tokens[start:end])))
                if UNKNOWN not in together:
                    piece, stop = together, end
                    break
        pieces.append((piece, start, stop))
        start = stop
    return pieces
