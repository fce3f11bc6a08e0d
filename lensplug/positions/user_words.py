"""The positions of the user's words in a prompt: neither special tokens nor what the chat template adds.

Two texts are compared, without white space, special tokens and media: the prompt as the template wrote it, in pieces of
which it is known whether the user wrote them, and the texts of the tokens. Processors add words of their own ("Frame
1:"), before the question as a rule, so that each piece is looked for from the end: the last but one "red" of the prompt
is the last but one of the tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lensplug.positions.tokens import characters_of


def user_words(
    pieces: Sequence[tuple[str, bool]],
    str_tokens: Sequence[str],
    tokens: Sequence[int],
    tokenizer: Any,
    is_ordinary: Bool[Tensor, " pos"],
) -> Bool[Tensor, " pos"]:
    """Where the user's words are; nowhere if they are not found.

    Args:
        pieces: The rendered prompt, each piece with whether the user wrote it.
        str_tokens: The text of each position.
        tokens: Their ids.
        tokenizer: For characters of several tokens, and what its special tokens are called.
        is_ordinary: Where there is text, no padding and no special token.
    """
    ordinary = is_ordinary.tolist()
    characters, owners = characters_of(str_tokens, tokens, tokenizer)
    kept = [index for index, (start, _) in enumerate(owners) if ordinary[start]]
    said, owners = "".join(characters[index] for index in kept), [owners[index] for index in kept]
    special = re.compile("|".join(map(re.escape, sorted(getattr(tokenizer, "all_special_tokens", ()), key=len)[::-1])))
    texts = [("".join(special.sub("", text).split()), is_users) for text, is_users in pieces]
    prompt, offset, where = "".join(text for text, _ in texts), 0, torch.zeros_like(is_ordinary)
    for text, is_users in texts:
        if is_users and text:
            rank = sum(start > offset for start in _occurrences(text, prompt))
            found = _occurrences(text, said)
            if rank < len(found):
                start = found[-1 - rank]
                where[owners[start][0] : owners[start + len(text) - 1][1]] = True
        offset += len(text)
    return where & is_ordinary


def _occurrences(text: str, within: str) -> list[int]:
    """Where a text begins, also within itself ("aa" in "aaa" twice)."""
    found, start = [], within.find(text)
    while start >= 0:
        found.append(start)
        start = within.find(text, start + 1)
    return found
