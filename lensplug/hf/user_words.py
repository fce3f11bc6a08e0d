"""Which parts of a rendered prompt are the user's words, and which the chat template's own.

A template may say much: a system prompt of its own, names of roles, line breaks. A text that occurs once in the
rendered prompt is where it occurs. One that the template itself says too ("user", "You") is found by rendering the
conversation again with a mark in its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lensplug.errors import LensplugError
from lensplug.hf import chat_templates
from lensplug.hf.conversations import Conversation, messages

Pieces = Sequence[tuple[str, bool]]
"""A rendered prompt in pieces, each with whether the user wrote it."""
MARK = "\ue5a1{}\ue5a2"
"""Of a private area of Unicode: no template says it."""
MARKED = re.compile("\ue5a1(\\d+)\ue5a2")


def pieces_of(processor: Any, conversation: Conversation, rendered: str) -> Pieces | None:
    """A prompt as the template wrote it, in pieces.

    Args:
        processor: Whose template it is.
        conversation: What was rendered.
        rendered: What became of it.

    Returns:
        None where the template makes another prompt of other words, so that nothing can be told.
    """
    texts = [
        text.strip() for turn in conversation if turn.role == "user" for kind, text in turn.parts if kind == "text"
    ]
    if not any(texts):
        return [(rendered, False)]
    if len(texts) == 1 and rendered.count(texts[0]) == 1:
        before, after = rendered.split(texts[0])
        return [(before, False), (texts[0], True), (after, False)]
    try:
        template = _rendered(processor, _marked(conversation))
    except LensplugError:  # this template refuses what it does not know
        return None
    parts = MARKED.split(template)
    pieces = [(texts[int(part)], True) if index % 2 else (part, False) for index, part in enumerate(parts)]
    return pieces if compact("".join(text for text, _ in pieces)) == compact(rendered) else None


def compact(text: str) -> str:
    """A text without its white space, which templates and tokenizers change."""
    return "".join(text.split())


def _rendered(processor: Any, conversation: Conversation) -> str:
    turns: Any = messages(conversation, as_text=not hasattr(processor, "tokenizer"))
    return chat_templates.rendered(processor, turns)


def _marked(conversation: Conversation) -> Conversation:
    """The same turns, with a numbered mark in place of each text of the user."""
    turns, number = [], 0
    for turn in conversation:
        parts = []
        for kind, content in turn.parts:
            if turn.role == "user" and kind == "text":
                content, number = MARK.format(number), number + 1
            parts.append((kind, content))
        turns.append(replace(turn, parts=tuple(parts)))
    return tuple(turns)
