"""One self-contained HTML page of figures and widgets: opens offline, loads nothing, can be mailed."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lensplug.views.circuits import Widget, script
from lensplug.views.sound import Player


@dataclass(frozen=True)
class Section:
    """A heading, a few sentences that say how to read what follows, and the pictures."""

    title: str
    text: str
    parts: tuple[go.Figure | Widget | Player, ...] = ()
    wide: bool = False
    """One part below the other, instead of side by side where there is room."""


@dataclass(frozen=True)
class Page:
    """A title, facts as name and value, sections, and how it was made."""

    title: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    provenance: tuple[str, ...] = field(default=())

    def to_html(self) -> str:
        """The page. Scripts are put in once; a content policy forbids every request."""
        widgets = any(isinstance(part, Widget) for section in self.sections for part in section.parts)
        return _template("page.html").render(
            page=self,
            style=Markup(_read("style.css")),
            rendered=[[_rendered(part) for part in section.parts] for section in self.sections],
            plotly_script=Markup(get_plotlyjs()),
            circuits_script=Markup(script()) if widgets else None,
        )

    def save(self, path: str | Path) -> Path:
        """Write the page; the file appears only when it is whole."""
        return _save(self.to_html(), path)


@dataclass(frozen=True)
class Index:
    """A page of links to others beside it."""

    title: str
    text: str
    entries: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]
    """(file name, heading, facts as name and value) of each page."""

    def save(self, path: str | Path) -> Path:
        """Write the page; the file appears only when it is whole."""
        return _save(_template("index.html").render(page=self, style=Markup(_read("style.css"))), path)


def _save(html: str, path: str | Path) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".part")
    try:
        unfinished.write_text(html, encoding="utf-8")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _template(name: str) -> jinja2.Template:
    return jinja2.Environment(autoescape=True).from_string(_read(name))


def _read(name: str) -> str:
    return (files("lensplug.views") / name).read_text(encoding="utf-8")


def _rendered(part: go.Figure | Widget | Player) -> Markup:
    if isinstance(part, Widget | Player):
        return Markup(part.body)
    return Markup(
        part.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})
    )
