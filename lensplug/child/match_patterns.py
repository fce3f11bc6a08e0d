"""Matches regular expressions, as peft does, which may try every way.

A request is [how, pattern, texts], where how is "match" or "fullmatch"; the answer is how many texts match.
"""

from __future__ import annotations

import re

import serving  # type: ignore[import-not-found]  # beside it, where it is run

serving.begin()


def matched(request: tuple[str, str, list[str]]) -> int:
    """How many texts match."""
    method, pattern, texts = request
    matches = getattr(re.compile(pattern), {"match": "match", "fullmatch": "fullmatch"}[method])
    return sum(matches(text) is not None for text in texts)


serving.serve(matched)
