"""Figures as pictures for a page: SVG of lines and letters, WebP where that would be large."""

from __future__ import annotations

import re
from base64 import b64encode
from io import BytesIO
from typing import Any

import plotly.graph_objects as go
from PIL import Image

from lensplug.validation.arguments import checked
from lensplug.views.static.draw import DPI, draw
from lensplug.views.static.library import house_style
from lensplug.views.static.plotly_values import PIXEL

NOTHING: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
"""A picture says neither when nor with what it was made."""

LARGEST = 120_000
"""A larger SVG, and one with a photograph (kept there without loss), is a WebP instead: a tenth of the bytes."""


@checked
def svg(figure: go.Figure, *, width: int = 860) -> str:
    """A figure as SVG.

    Args:
        figure: Of `lensplug.views`.
        width: In pixels, where the figure has none.

    Raises:
        LensplugError: If matplotlib is missing, or the figure has something that is not known.
    """
    text = _written(figure, width, "svg", dpi=1.5 * DPI, metadata=NOTHING).decode()
    return re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)  # which program, which version


@checked
def png(figure: go.Figure, *, width: int = 860, scale: float = 2.0) -> bytes:
    """A figure as PNG.

    Args:
        figure: Of `lensplug.views`.
        width: In pixels, where the figure has none.
        scale: Pixels of the picture for each.

    Raises:
        LensplugError: If matplotlib is missing, or the figure has something that is not known.
    """
    return _written(figure, width, "png", dpi=scale * DPI, metadata={"Software": None})


def data_url_of(figure: go.Figure, *, width: int = 860) -> tuple[str, int]:
    """A figure as an address that holds it, and its width on a page."""
    text = "" if figure.layout.images else svg(figure, width=width)
    if text and len(text) <= LARGEST:
        width_in_points = re.search(r'<svg[^>]* width="([\d.]+)pt"', text)
        shown_width = round(float(width_in_points.group(1)) / PIXEL) if width_in_points else width
        return f"data:image/svg+xml;base64,{b64encode(text.encode()).decode()}", shown_width
    data = _written(figure, width, "webp", dpi=1.5 * DPI, pil_kwargs={"quality": 84})
    with Image.open(BytesIO(data)) as picture:
        shown_width = round(picture.width / 1.5)
    return f"data:image/webp;base64,{b64encode(data).decode()}", shown_width


def _written(figure: go.Figure, width: int, kind: str, **options: Any) -> bytes:
    drawn, buffer = draw(figure, width=width), BytesIO()
    with house_style():
        drawn.savefig(buffer, format=kind, bbox_inches="tight", pad_inches=0.08, facecolor="white", **options)
    return buffer.getvalue()
