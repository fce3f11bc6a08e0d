"""One self-contained HTML page of figures and widgets: opens offline, loads nothing, can be mailed.

plotly and CircuitsVis are 6 MB of script; the page stores them as gzip in base64 (2.4 MB), and loader.js
decompresses them when the page opens. Until then the scripts of the figures wait, with a type that browsers do not
run.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lensplug.files.atomic_write import write_text
from lensplug.files.writable import file_to_write
from lensplug.printable import printable
from lensplug.views.explorer.packing import inflatable
from lensplug.views.overlays.sound import Player
from lensplug.views.page.embedded import Embedded
from lensplug.views.page.plain import SmallPictures, Table
from lensplug.views.tokens.circuitsvis_widgets import Widget, script

Part: TypeAlias = go.Figure | Widget | Player | Embedded | Table | SmallPictures


@dataclass(frozen=True)
class Section:
    """A heading, a few sentences on how to read the figures, and the figures."""

    title: str
    text: str
    parts: tuple[Part, ...] = ()
    wide: bool = False
    """Parts one below the other instead of side by side."""
    interaction: str = ""
    """What to do with the figures; a page without scripts leaves it out."""


@dataclass(frozen=True)
class Page:
    """A title, facts as (name, value), sections, and provenance lines."""

    title: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    provenance: tuple[str, ...] = field(default=())

    def to_html(self, *, static: bool = False) -> str:
        """The page. Scripts are put in once; a content policy forbids every request, and every other script.

        Args:
            static: Without any script: pictures in place of what moves, for where scripts may not run.

        Raises:
            LensplugError: If it is to be static, and matplotlib is missing.
        """
        if static:
            return self._static()
        parts = [part for section in self.sections for part in section.parts]
        embedded = list(dict.fromkeys(type(part) for part in parts if isinstance(part, Embedded)))
        tokens = bool(embedded) or any(isinstance(part, Widget) for part in parts)
        rendered = [[_rendered(part) for part in section.parts] for section in self.sections]
        return _template("page.html").render(
            page=self,
            nonce=_nonce((self.facts, self.provenance, rendered)),
            style=Markup(_read("style.css") + "".join(_read(kind.style, kind.folder) for kind in embedded)),
            rendered=rendered,
            libraries=[Markup(_library(source)) for source in ([get_plotlyjs, script] if tokens else [get_plotlyjs])],
            scripts=[Markup(_read(kind.script, kind.folder)) for kind in embedded],
            loader=Markup(_read("loader.js")),
            roomy=bool(embedded),
        )

    def _static(self) -> str:
        from lensplug.views.static.library import need_matplotlib
        from lensplug.views.static.parts import shades, shown  # what draws is imported when it is asked for

        need_matplotlib()
        style = _read("style.css") + _read("static.css") + shades()
        rendered = [
            [shown(part, 1000 if section.wide or len(section.parts) == 1 else 500) for part in section.parts]
            for section in self.sections
        ]
        digest = b64encode(sha256(style.encode()).digest()).decode()  # no other style is taken
        return _template("static.html").render(page=self, style=Markup(style), digest=digest, rendered=rendered)

    def save(self, path: str | Path, *, static: bool = False) -> Path:
        """Write the page; the file appears only when it is whole.

        Args:
            path: The file.
            static: Without any script, as `to_html` makes it.

        Raises:
            LensplugError: If it cannot be written there, or is to be static and matplotlib is missing.
        """
        target = file_to_write(path)  # fails before the page is rendered
        return write_text(target, self.to_html(static=static))


@dataclass(frozen=True)
class Index:
    """A page of links to pages in the same folder."""

    title: str
    text: str
    entries: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]
    """(file name, heading, facts as name and value) of each page."""

    def save(self, path: str | Path) -> Path:
        """Write the page; the file appears only once it is complete.

        Raises:
            LensplugError: If it cannot be written there.
        """
        target = file_to_write(path)
        return write_text(target, _template("index.html").render(page=self, style=Markup(_read("style.css"))))


def _nonce(content: object) -> str:
    """The nonce of the page's own scripts: a hash of all content, so that no author of a part can predict it."""
    return sha256(repr(content).encode("utf-8", "backslashreplace")).hexdigest()[:32]


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True)
    environment.filters["printable"] = partial(printable, keep="\n\t")
    return environment.from_string(_read(name))


def _read(name: str, folder: str = "lensplug.views.page") -> str:
    return (files(folder) / name).read_text(encoding="utf-8")


@cache
def _library(source: Callable[[], str]) -> str:
    return inflatable(source().encode())


def _rendered(part: Part) -> Markup:
    if isinstance(part, Embedded | Player | Table | SmallPictures):
        return Markup(part.body)
    if isinstance(part, Widget):
        body = part.body
    else:
        config = {"displayModeBar": False, "responsive": True}
        body = part.to_html(full_html=False, include_plotlyjs=False, config=config)
    # Each script runs once the loader has unpacked the libraries. Every "<" inside script text is escaped.
    return Markup(re.sub(r'<script(?: type="text/javascript")?>', '<script type="text/plain" class="waiting">', body))
