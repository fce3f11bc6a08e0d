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


@dataclass(frozen=True)
class Section:
    """A heading, a few sentences that say how to read what follows, and the pictures."""

    title: str
    text: str
    parts: tuple[go.Figure | Widget, ...] = ()


@dataclass(frozen=True)
class Page:
    """A title, facts as name and value, sections, and how it was made."""

    title: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    provenance: tuple[str, ...] = field(default=())

    def to_html(self) -> str:
        """The page. Scripts are put in once; a content policy forbids every request."""
        template = jinja2.Environment(autoescape=True).from_string(
            (files("lensplug.views") / "page.html").read_text(encoding="utf-8")
        )
        widgets = any(isinstance(part, Widget) for section in self.sections for part in section.parts)
        return template.render(
            page=self,
            rendered=[[_rendered(part) for part in section.parts] for section in self.sections],
            plotly_script=Markup(get_plotlyjs()),
            circuits_script=Markup(script()) if widgets else None,
        )

    def save(self, path: str | Path) -> Path:
        """Write the page; the file appears only when it is whole."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + ".part")
        try:
            unfinished.write_text(self.to_html(), encoding="utf-8")
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
        return target


def _rendered(part: go.Figure | Widget) -> Markup:
    if isinstance(part, Widget):
        return Markup(part.body)
    return Markup(
        part.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})
    )
