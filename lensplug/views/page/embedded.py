"""An interactive part of a page that brings its own style and script: the page needs to know no more of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import plotly.graph_objects as go


@dataclass(frozen=True)
class Still:
    """What a page without scripts shows in place of a part: a figure and a table."""

    figure: go.Figure = field(repr=False)
    """Drawn without what moves."""
    columns: tuple[str, ...]
    """The heads of the table's columns, that of the rows' names first."""
    rows: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = field(repr=False)
    """Each row's name, and in each column a text with its share (0 to 1), which is its colour."""
    note: str
    """What the table shows, and what the page with scripts has besides."""


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
    still: Callable[[], Still] | None = field(default=None, repr=False, kw_only=True)
    """Makes what a page without scripts shows in its place."""
