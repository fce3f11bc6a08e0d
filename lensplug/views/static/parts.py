"""Each part of a page without scripts: pictures, tables, coloured words, the sound; each with what it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.subplots import make_subplots

from lensplug.errors import LensplugError
from lensplug.views.overlays.sound import Player
from lensplug.views.page.embedded import Embedded
from lensplug.views.page.plain import SmallPictures, Table
from lensplug.views.static.pictures import data_url_of
from lensplug.views.static.plotly_values import plain
from lensplug.views.static.states import states
from lensplug.views.style import MODALITY_COLORS, figure
from lensplug.views.tokens.circuitsvis_widgets import Widget

LEVELS = 20
"""Shades of a value, as classes of the page's one style sheet: no element needs a style of its own."""
SMALL = 330
"""Width of each of several pictures in place of a slider, in pixels."""


@dataclass(frozen=True)
class Shown:
    """What the page's template writes for one part."""

    pictures: tuple[tuple[str, str, tuple[str, int]], ...] = ()
    """(label, alternative text, (address, width)) of each."""
    words: tuple[tuple[str, str, str], ...] = ()
    """(text, value, class) of each."""
    head: tuple[str, ...] = ()
    """The columns of a table."""
    rows: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = ()
    """Of each row the name, and of each cell (text, value, class)."""
    html: str = ""
    """Of a part that needs no script: a player, a table, small pictures."""
    note: str = ""
    """What the page with scripts has besides."""


@singledispatch
def shown(part: Any, width: int) -> list[Shown]:
    """What is written for a part.

    Args:
        part: Of a page's section.
        width: In pixels, of what has no width of its own.

    Raises:
        LensplugError: If there is no static form of it.
    """
    raise LensplugError(f"a page without scripts cannot show a {type(part).__name__}.")


@shown.register
def _figure(part: go.Figure, width: int) -> list[Shown]:
    drawn = states(part)
    several = len(drawn) > 1
    label = plain(part.layout.title.text).partition("\n")[0] or "figure"
    images = [
        (name, _alternative(label, name, fig), data_url_of(_small(fig) if several else fig, width=width))
        for name, fig in drawn
    ]
    controls = []
    if several:
        count = len(part.layout.sliders[0].steps)
        controls.append(
            f"a slider through {count} steps" + (f", {len(drawn)} of which are here" if len(drawn) < count else "")
        )
    controls += [f"buttons ({', '.join(plain(one.label) for one in menu.buttons)})" for menu in part.layout.updatemenus]
    return [Shown(pictures=tuple(images), note=f"With scripts: {'; '.join(controls)}." if controls else "")]


def _small(fig: go.Figure) -> go.Figure:
    """One of several: smaller, where it is no picture of its own size."""
    made = go.Figure(fig)
    if made.layout.width is None:
        made.update_layout(width=SMALL + 130, height=340)
    return made


def _alternative(label: str, name: str, fig: go.Figure) -> str:
    kinds = {"heatmap": "heat map", "bar": "bars", "scatter": "lines"}
    seen = sorted({kinds.get(trace.type, trace.type) for trace in fig.data if trace.visible in (None, True)})
    axes = [plain(axis.title.text) for axis in (*fig.select_xaxes(), *fig.select_yaxes()) if axis.title.text]
    of = f" of {', '.join(dict.fromkeys(axes))}" if axes else ""
    over = " over the picture" if fig.layout.images else ""
    return f"{label}{', ' + name if name else ''}: {' and '.join(seen)}{of}{over}"


@shown.register
def _widget(part: Widget, width: int) -> list[Shown]:
    properties = part.properties
    if part.component == "ColoredTokens":
        values = [float(value) for value in properties["values"]]
        most = max((abs(value) for value in values), default=0.0) or 1.0
        words = tuple(
            (text.replace("\u2060", ""), f"{value:.4g}", _level(value / most))
            for text, value in zip(properties["tokens"], values, strict=True)
        )
        legend = tuple(
            (f"{at * most:.2g}", "", _level(at)) for at in ((-1, 0, 1) if min(values, default=0) < 0 else (0, 0.5, 1))
        )
        return [Shown(words=words), Shown(words=legend, note="The scale of the colors.")]
    if part.component == "AttentionHeads":
        tokens, names = properties["tokens"], properties["attentionHeadNames"]
        fig = _heads(np.asarray(properties["attention"], dtype=float), tokens, names)
        note = "Rows look at columns; all heads have one scale. With scripts: each head large, each word to point at."
        alt = f"Attention of {len(names)} heads between {len(tokens)} tokens: heat maps"
        return [Shown(pictures=(("", alt, data_url_of(fig, width=1000)),), note=note)]
    raise LensplugError(f"a page without scripts cannot show CircuitsVis's {part.component!r}.")


def _heads(attention: np.ndarray, tokens: Sequence[str], names: Sequence[str]) -> go.Figure:
    """A small heat map for each head."""
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    fig = make_subplots(
        rows=rows, cols=columns, subplot_titles=[plain(name) for name in names], horizontal_spacing=0.02,
        vertical_spacing=0.22 / rows, shared_xaxes=True, shared_yaxes=True,
    )  # fmt: skip
    at = [f"{place}" for place in range(len(tokens))]
    for index, weights in enumerate(attention):
        heat = go.Heatmap(
            z=weights, x=at, y=at, zmin=0, zmax=float(attention.max()) or 1.0, showscale=index == columns - 1,
            colorscale=[[0, "#ffffff"], [0.3, "#bcd7e6"], [0.6, "#4f8fbb"], [1, "#0b2545"]],
            colorbar={"title": "attention"},
        )  # fmt: skip
        fig.add_trace(heat, row=index // columns + 1, col=index % columns + 1)
    side = 300
    fig.update_layout(figure(title="Attention between tokens", height=side * rows + 120).layout)
    step = max(1, -(-len(tokens) // 24))
    ticks = {"type": "category", "tickvals": at[::step], "ticktext": [text[:14] for text in tokens][::step],
             "tickfont": {"size": 9}}  # fmt: skip
    fig.update_xaxes(tickangle=-90, showticklabels=False, **ticks)
    for column in range(columns):  # the last row may be shorter
        last = (len(names) - 1 - column) // columns + 1
        fig.update_xaxes(showticklabels=True, row=last, col=column + 1)
    fig.update_yaxes(autorange="reversed", showticklabels=False, **ticks)
    fig.update_yaxes(showticklabels=True, col=1)
    return fig


@shown.register(Player)
@shown.register(Table)
@shown.register(SmallPictures)
def _html(part: Player | Table | SmallPictures, width: int) -> list[Shown]:
    return [Shown(html=Markup(part.body))]


@shown.register
def _embedded(part: Embedded, width: int) -> list[Shown]:
    if part.still is None:
        raise LensplugError(f"a page without scripts cannot show a {type(part).__name__}: it has no still form.")
    still = part.still()
    rows = tuple(
        (name, tuple((text, f"{value:.3f}", _level(value)) for text, value in cells)) for name, cells in still.rows
    )
    return [*_figure(still.figure, width), Shown(head=still.columns, rows=rows, note=still.note)]


def _level(share: float | int) -> str:
    """The class of a value from -1 to 1."""
    if not np.isfinite(share):
        return "unknown"
    return f"{'less' if share < 0 else 'more'}-{round(min(abs(share), 1.0) * LEVELS)}"


def shades() -> str:
    """The rules of those classes: orange as for probabilities, blue below 0."""
    rules = []
    for name, color in (("more", MODALITY_COLORS["image"]), ("less", MODALITY_COLORS["text"])):
        red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
        rules += [
            f".{name}-{level} {{ background: rgba({red}, {green}, {blue}, {level / LEVELS * 0.85:.3f}); }}"
            for level in range(LEVELS + 1)
        ]
    return "\n".join(rules)
