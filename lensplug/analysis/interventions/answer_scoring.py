"""Answers as sequences of tokens, and how one is scored among a closed set of them.

An answer of several tokens has the log-probability of each, given the prompt and the tokens before it. Three scores:

- "sum": log p(answer). What the model would write has the largest; short answers have fewer factors below 1.
- "mean": the same over the number of tokens, so that long labels can win; where labels differ in length it favours
  those whose later pieces follow from the first.
- "first": log p up to the piece that tells an answer from all others, and nothing behind it.

For answers of one token each, all three are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lensplug.errors import LensplugError

Scoring = Literal["sum", "mean", "first"]
Label = str | int | Sequence[int]
"""A word, or the ids of its tokens."""


def answer_tokens(label: Label, tokenizer: Any, vocabulary: int) -> tuple[int, ...]:
    """The tokens of an answer, as the model would write it; white space at its front counts.

    Raises:
        LensplugError: If it has none, or is a number that is no token.
    """
    if isinstance(label, str):
        if tokenizer is None:
            raise LensplugError(f"the answer is {label!r}, but there is no tokenizer: give its token ids.")
        ids = tokenizer(label, add_special_tokens=False)["input_ids"]
    else:
        ids = [label] if isinstance(label, int) else list(label)
    if not ids or not all(isinstance(token, int) and 0 <= token < vocabulary for token in ids):
        raise LensplugError(f"the answer {label!r} is no text, token id from 0 to {vocabulary - 1}, or list of these.")
    return tuple(ids)


def answer_name(label: Label, tokenizer: Any) -> str:
    """What an answer is called in tables."""
    if isinstance(label, str):
        return label
    ids = [label] if isinstance(label, int) else list(label)
    return str(ids) if tokenizer is None else str(tokenizer.decode(ids))


def scored_pieces(answers: Sequence[tuple[int, ...]], scoring: str) -> list[tuple[int, ...]]:
    """The tokens of each answer that count: all, or with "first" as many as tell it from every other."""
    if scoring != "first":
        return list(answers)
    pieces = []
    for answer in answers:
        other_answers = [other_answer for other_answer in answers if other_answer != answer]
        enough = (
            n
            for n in range(1, len(answer) + 1)
            if all(other_answer[:n] != answer[:n] for other_answer in other_answers)
        )
        pieces.append(answer[: next(enough, len(answer))])
    return pieces
