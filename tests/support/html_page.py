"""What is in a page of HTML: its tags with their attributes, and its text."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any


class Parsed(HTMLParser):
    """A page that was read, as `tags` and `text`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data
