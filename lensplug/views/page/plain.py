"""Parts of a page that need no script: tables, and pictures so small that several stand in a row."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import jinja2
import numpy as np
from PIL import Image

from lensplug.printable import printable

SIDE = 192
"""The longer side of a small picture, in pixels; it is shown at up to 128, sharp on fine screens."""
SHORT = 28
"""Cells of at most this length are never broken into lines."""
_TABLE = """{% if title %}<p class="above">{{ title }}</p>{% endif %}
{% if rows %}<table class="plain"><thead><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td{% if cell|length <= short %} class="short"{% endif %}>
{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody></table>{% endif %}"""
_PICTURES = """<div class="thumbnails">{% for address, lines in pictures %}<figure>
<img alt="Example: {{ lines|join(', ') }}" src="{{ address }}">
<figcaption>{% for line in lines %}{{ line }}<br>{% endfor %}</figcaption></figure>{% endfor %}</div>"""


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    """Above it; all that is shown where there are no rows."""

    @property
    def body(self) -> str:
        """As HTML, every text escaped."""
        rows = [[printable(cell) for cell in row] for row in self.rows]
        return _rendered(
            _TABLE, title=self.title, columns=[printable(name) for name in self.columns], rows=rows, short=SHORT
        )


@dataclass(frozen=True)
class SmallPictures:
    """Pictures with a few lines below each."""

    pictures: tuple[tuple[str, tuple[str, ...]], ...]
    """The address that holds each, from `small`, and its lines."""

    @property
    def body(self) -> str:
        """As HTML, every text escaped."""
        pictures = [(address, [printable(line) for line in lines]) for address, lines in self.pictures]
        return _rendered(_PICTURES, pictures=pictures)


def small(picture: Image.Image) -> str:
    """A picture as an address that holds it, at most `SIDE` pixels on a side; of its file nothing but the pixels."""
    reduced = picture.convert("RGB")
    reduced.thumbnail((SIDE, SIDE))
    buffer = BytesIO()
    Image.fromarray(np.asarray(reduced)).save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"


def _rendered(template: str, **values: str | int | Sequence[object]) -> str:
    return jinja2.Environment(autoescape=True).from_string(template).render(**values)
