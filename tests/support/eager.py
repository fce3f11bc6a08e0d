"""Hugging Face's eager attention for the length of a scope: it returns its patterns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def eager(decoder: Any) -> Iterator[None]:
    """The decoder's attention is eager."""
    before, decoder.config._attn_implementation = decoder.config._attn_implementation, "eager"
    try:
        yield
    finally:
        decoder.config._attn_implementation = before
