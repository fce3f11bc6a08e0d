"""Colours and layout shared by all figures, and the text of tokens made safe and visible."""

from __future__ import annotations

import html
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

from lensplug.printable import printable

MODALITY_COLORS = {
    "text": "#4c78a8",
    "image": "#e8912d",
    "video": "#b5651d",
    "audio": "#2a9d8f",
    "generated": "#8e5ea2",
    "pad": "#c9ccd1",
    "sink": "#59616b",
    "mixed": "#e9e4d8",
    "nothing": "#ffffff",
}
"""Colors of the modalities, and of what else a head can look at."""
CATEGORIES = ("#332288", "#cc6677", "#117733", "#ddaa33", "#44aa99", "#882255", "#88ccee", "#999933", "#aa4499")
"""Of things without colors of their own; told apart with the three kinds of color blindness (Paul Tol's muted colors,
the darkest first: thin lines show on white)."""
HEAT = [
    [0.0, "rgba(60, 40, 150, 0.0)"],
    [0.2, "rgba(60, 50, 160, 0.34)"],
    [0.6, "rgba(40, 190, 190, 0.55)"],
    [1.0, "rgba(255, 235, 70, 0.85)"],
]
"""Color scale over images, from 0, which is transparent."""
HEAT_SIGNED = [
    [0.0, "rgba(20, 70, 160, 0.85)"],
    [0.25, "rgba(40, 130, 220, 0.50)"],
    [0.5, "rgba(255, 255, 255, 0.0)"],
    [0.75, "rgba(240, 120, 40, 0.50)"],
    [1.0, "rgba(190, 40, 10, 0.85)"],
]
"""Color scale over images for values of both signs; 0, in the middle, is transparent."""
PAPER_TO_DARK = [[0.0, "#fdfcf9"], [0.33, "#f5c78e"], [0.66, "#db6a1f"], [1.0, "#571a03"]]
"""Color scale from 0 to the largest possible value."""
WHITE_TO_ORANGE = [[0.0, "#ffffff"], [0.5, "#f6c992"], [1.0, "#dd6b20"]]
"""Color scale behind waveforms and channels."""
DIVERGING = [[0.0, "#2b5c8a"], [0.5, "#f7f6f3"], [1.0, "#c2541b"]]
"""Diverging color scale: blue below chance, orange above it, off-white at chance."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def figure(*traces: Any, title: str, height: int, width: int | None = None) -> go.Figure:
    """A figure with the layout that all figures share."""
    fig = go.Figure(list(traces))
    fig.update_layout(
        title={"text": title, "font": {"size": 15}, "x": 0, "xanchor": "left", "xref": "paper"},
        font={"family": FONT, "size": 12, "color": "#22252a"},
        paper_bgcolor="white",
        plot_bgcolor="white",
        height=height,
        width=width,
        margin={"l": 60, "r": 20, "t": 48, "b": 48},
        hoverlabel={"font": {"family": FONT}},
    )
    return fig


def titled(fig: go.Figure, title: str, notes: str) -> None:
    """Put a title over a figure with notes below it, wrapped to 480 pixels; the figure becomes taller to hold them."""
    text = title_text(title, notes)
    room = 76 + 18 * text.count("<br>")  # below the buttons of plotly's mode bar, which would cover the title
    fig.update_layout(title={"text": text, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 46}})
    fig.update_layout(margin={"t": room}, height=fig.layout.height + room)


def title_text(title: str, notes: str) -> str:
    """A title with notes below it, wrapped to 480 pixels."""
    return title + "".join(f"<br><sub>{line}</sub>" for line in wrap(notes, 62))


def visible(token: str) -> str:
    """A token made visible: leading spaces and line breaks as symbols, HTML escaped."""
    text = token.replace("\n", "⏎").replace("\t", "⇥")
    text = "·" + text[1:] if text.startswith(" ") else text
    return html.escape(printable(text) or "∅", quote=False)
