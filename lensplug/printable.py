r"""Text from outside, made safe to print: control characters and invisible characters are escaped.

Model names, paths, prompts and answers may hold anything: `\x1b[2J` clears the screen, `\r` writes over the line,
U+202E turns what follows around, U+200B makes two names look alike, and a lone surrogate cannot be written at all.
They are shown as Python writes them in a string. A backslash stays one backslash, so that paths of Windows stay
paths: what is shown is for reading, not for decoding.
"""

from __future__ import annotations

import re
import unicodedata

OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories: control, format (bidi, zero width, tags), surrogate, line and paragraph separator."""
UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0d\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
"""Invisible characters of other categories: fillers, variation selectors (but those of emoji), the empty Braille."""
JOINERS = "\u200c\u200d"
"""Between two characters beyond ASCII these are spelling: Persian and Indic words, families of emoji."""


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with every character that is obeyed or unseen as `\x1b`, `\u202e`, ...

    Args:
        text: Any.
        keep: Characters that stay as they are, such as a line break.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character in keep or _is_seen(character) or _is_spelling(text, index)
        else character.encode("unicode_escape").decode()
        for index, character in enumerate(text)
    )


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in OBEYED and UNSEEN.match(character) is None


def _is_spelling(text: str, index: int) -> bool:
    if text[index] not in JOINERS or not 0 < index < len(text) - 1:
        return False
    return all(not neighbour.isascii() and _is_seen(neighbour) for neighbour in (text[index - 1], text[index + 1]))
