"""An interactive part of a page that brings its own style and script: the page needs to know no more of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Embedded:
    """HTML of a part, and the files that make it work, which a page contains once however many parts need them."""

    folder: ClassVar[str]
    """The package that holds the files."""
    style: ClassVar[str]
    """The name of its style sheet."""
    script: ClassVar[str]
    """The name of its script; the libraries of plotly and CircuitsVis are there when it runs."""
    body: str = field(repr=False)
    """HTML of its panels and data; the page supplies the scripts."""
