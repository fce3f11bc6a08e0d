"""Subword pieces joined into words, so that attention can be read word by word.

A tokenizer cuts "rolling" into "roll" and "##ing"; a heat map should have one row and one column for it.
Attention onto a word is the sum over its pieces, attention of a word the mean over its pieces (Clark et al.
2019, arXiv 1906.04341), so that rows still sum to 1.

    words = lensplug.join_pieces(tokenizer.convert_ids_to_tokens(ids))
    words = lensplug.join_pieces(tokens, word_ids=batch.word_ids(0))        # a fast tokenizer knows exactly
    analysis.attention_matrix(cache, layer=3, groups=[words])

When not to use it: a head that looks from one piece to the next piece of its word looks, once they are joined, at
itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from lensplug.errors import LensplugError
from lensplug.positions.groups import Groups
from lensplug.validation.arguments import checked

CONTINUES = re.compile(r"##\w")
"""WordPiece (BERT) marks the pieces that go on."""
STARTS = ("Ġ", "▁", " ")
"""BPE (GPT-2, RoBERTa, Qwen) and SentencePiece (T5, Llama) mark the pieces that start, " " where they were decoded."""
ALONE = re.compile(r"\[[A-Z]+\d*\]|<(?!0x)[^<>\s]+>|[Ċ\n]+")
"""Special tokens and line breaks; <0xE2> is a byte of a word."""


@checked
def join_pieces(str_tokens: Sequence[str], *, word_ids: Sequence[int | None] | None = None) -> Groups:
    """The words of one example, each special token alone.

    Without `word_ids` the marks of the pieces tell: "##x" goes on, "Ġx", "▁x" and " x" start a word, where none has a
    mark each piece stays alone. In BPE and SentencePiece a comma then belongs to the word before it.

    Args:
        str_tokens: The text of each position.
        word_ids: The word of each position, None for special tokens, as a fast tokenizer tells
            (`batch.word_ids(example)`); neighbours with the same number are one word.

    Raises:
        LensplugError: If there is not one word id for each position.
    """
    if word_ids is not None and len(word_ids) != len(str_tokens):
        raise LensplugError(
            f"there are {len(word_ids)} word_ids and {len(str_tokens)} tokens: give batch.word_ids(example) of the"
            " example whose tokens these are."
        )
    goes_on = _by_marks(str_tokens) if word_ids is None else _by_ids(word_ids)
    of_position: list[int] = []
    words: list[list[str]] = []
    for piece, continues in zip(str_tokens, goes_on, strict=True):
        if not continues:
            words.append([])
        words[-1].append(piece)
        of_position.append(len(words) - 1)
    return Groups(torch.tensor(of_position, dtype=torch.long), [_name(pieces) for pieces in words])


def running_text(str_tokens: Sequence[str]) -> list[str]:
    """The pieces as they are read one after another: a space before each word but the first, no marks."""
    of_position = join_pieces(str_tokens).of_position.tolist()
    starts = [index != last for index, last in zip(of_position, [*of_position[:1], *of_position], strict=False)]
    return [" " * start + _name([piece]) for piece, start in zip(str_tokens, starts, strict=True)]


def _by_ids(word_ids: Sequence[int | None]) -> list[bool]:
    before = [None, *word_ids]
    return [word is not None and word == last for word, last in zip(word_ids, before, strict=False)]


def _by_marks(pieces: Sequence[str]) -> list[bool]:
    """Whether each piece goes on with the word before it."""
    stands_alone = [ALONE.fullmatch(piece) is not None for piece in pieces]
    if any(CONTINUES.match(piece) for piece in pieces):
        marked = [CONTINUES.match(piece) is not None for piece in pieces]
    elif any(piece.startswith(STARTS) for piece in pieces):
        marked = [not piece.startswith(STARTS) for piece in pieces]
    else:
        return [False] * len(pieces)
    after_alone = [True, *stands_alone]
    return [
        is_marked and not is_alone and not follows_alone
        for is_marked, is_alone, follows_alone in zip(marked, stands_alone, after_alone, strict=False)
    ]


def _name(pieces: Sequence[str]) -> str:
    """The word without the marks of its pieces; the marks where there is nothing else."""
    text = "".join(piece[2:] if CONTINUES.match(piece) else piece for piece in pieces)
    return text.lstrip("".join(STARTS)) or text
