"""Attention between named positions as a heat map that stays readable for hundreds of positions.

Color is the weight, from 0 to the largest. If a few columns (attention sinks) take nearly all of it, the others look
empty although they are only small: a button switches to the square root, with a scale that ends below the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import sample_colorscale
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.views.style import figure, title_text, titled, visible

CELLS = 1_000_000
"""Maximum number of cells: a page of 5 MB, with less than a pixel per cell."""
GAPS = 40
"""Up to this many rows and columns, cells are drawn with gaps between them."""
FEW, SINKS, CLIP = 20, 3, 16
"""For the square-root scale with at least FEW columns: as many cells as SINKS columns hold may exceed the scale, which
ends at no less than the largest weight / CLIP. Otherwise only the first token and the separators would be visible."""
SCALE = {
    "orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "len": 220, "lenmode": "pixels",
    "thickness": 8, "xpad": 0, "ypad": 4, "tickformat": ".2~g", "tickfont": {"size": 10},
    "ticklabelposition": "outside top", "outlinewidth": 0, "nticks": 5,
}  # fmt: skip
"""The color bar, at the top left: to the right of a square matrix it could be far away."""
LENGTH = 22
"""Maximum length of a token's text; longer ones are cut."""
PAPER_TO_INK = [[0.0, "#ffffff"], [0.3, "#bcd7e6"], [0.6, "#4f8fbb"], [1.0, "#0b2545"]]
BY_ROOT = [
    [(step / 24) ** 2, color]
    for step, color in enumerate(sample_colorscale(PAPER_TO_INK, [step / 24 for step in range(25)]))
]
"""Color by the square root of weight / largest: 1 % of the largest weight is drawn as 10 %."""
ColorScale = Literal["linear", "root"]
"""Color by the weight, or by its square root."""
SCALES: tuple[ColorScale, ...] = get_args(ColorScale)


def heatmap(
    values: Float[Tensor, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    notes: str,
    hover: str,
    height: int,
    scale: ColorScale = "linear",
) -> go.Figure:
    """A heat map of weights; the axes show as many names as fit.

    Args:
        values: Weights from 0 up; NaN is white.
        rows: Unique names.
        columns: Unique names.
        title: Title of the figure.
        notes: Text below the title.
        hover: Hover template of the names, such as "%{y} attends to %{x}".
        height: Height of the figure in pixels, without its title.
        scale: The initial color scale: "linear", or "root" (square root of the weight).

    Raises:
        LensplugError: If there are too many cells.
    """
    if values.numel() > CELLS:
        raise LensplugError(
            f"{len(rows)} x {len(columns)} cells are too many to see, and take {values.numel() * 5.4 / 1e6:.0f} MB on a"
            " page: pool them (groups='words', or groups=[views.group_positions(inputs.modality)]), or draw chosen rows"
            " (views.attention_by_layer)."
        )
    finite = values.nan_to_num(0)
    states = {name: _state(finite, name, title, notes) for name in SCALES}
    gap = 1 if max(values.shape) <= GAPS else 0
    first, text = states[scale]
    heat = go.Heatmap(
        z=values.numpy(), x=list(columns), y=list(rows), **first, xgap=gap, ygap=gap,
        hovertemplate=f"{hover}: %{{z:.4f}}<extra></extra>", colorbar=SCALE,
    )  # fmt: skip
    fig = figure(heat, title="", height=height)
    titled(fig, title, _notes(notes, *_clipped(finite, "root")))  # reserves room for the longer one
    fig.update_layout(title={"text": text})
    buttons = [
        {
            "label": label,
            "method": "update",
            "args": [{**state, "colorscale": [state["colorscale"]]}, {"title.text": titled_text}],
        }
        for label, (state, titled_text) in zip(("linear", "square root"), states.values(), strict=True)
    ]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "active": SCALES.index(scale)}
    placement = {
        "x": 0,
        "xanchor": "left",
        "y": 1,
        "yanchor": "bottom",
        "pad": {"b": 2, "l": 240},
        "font": {"size": 10},
    }
    fig.update_layout(updatemenus=[{**menu, **placement}])
    room = 28  # for the colour bar
    fig.update_layout(margin={"b": 20, "l": 20, "t": fig.layout.margin.t + room}, height=fig.layout.height + room)
    fig.update_layout(title={"pad": {"t": 58}})  # plotly moves it up when it makes room for long names
    fig.update_xaxes(type="category", tickangle=-90, tickfont={"size": 10}, automargin=True)
    fig.update_yaxes(type="category", autorange="reversed", tickfont={"size": 10}, automargin=True)
    return fig


def _state(values: Float[Tensor, "row column"], scale: str, title: str, notes: str) -> tuple[dict[str, Any], str]:
    """The color scale, and a title that describes it."""
    darkest, largest = _clipped(values, scale)
    colors = BY_ROOT if scale == "root" else PAPER_TO_INK
    notes_with_scale = (
        _notes(notes, darkest, largest) if scale == "root" else f"{notes}; colour from 0 to {largest:.2g}"
    )
    return {"colorscale": colors, "zmin": 0, "zmax": darkest or 1.0}, title_text(title, notes_with_scale)


def _clipped(values: Float[Tensor, "row column"], scale: str) -> tuple[float, float]:
    """The weight at which the color scale saturates, and the largest weight."""
    largest = float(values.max())
    return (_darkest(values) if scale == "root" else largest), largest


def _notes(notes: str, darkest: float, largest: float) -> str:
    clipped = f", the darkest from {darkest:.2g} on (the largest weight is {largest:.2g})" if darkest < largest else ""
    return f"{notes}; colour by square root{clipped}"


def _darkest(values: Float[Tensor, "row column"]) -> float:
    """The weight at which the scale saturates: the largest, or less if a few columns have nearly all weight."""
    largest, columns = float(values.max()), values.shape[1]
    if columns < FEW:
        return largest
    quantile = float(values.flatten().quantile(1 - SINKS / columns))
    return max(quantile, largest / CLIP)


def numbered(texts: Sequence[str], positions: Sequence[int]) -> list[str]:
    """Unique names: each text with its position; the position alone if there is no text."""
    return [
        f"{_short(text)} {position}" if text else str(position) for text, position in zip(texts, positions, strict=True)
    ]


def texts_for(
    length: int, *, inputs: MultimodalInput | None, str_tokens: Sequence[Sequence[str]] | None, example: int
) -> tuple[str, ...]:
    """The text of each position: from `inputs`, from `str_tokens`, or "".

    Raises:
        LensplugError: If there is not one text per position.
    """
    texts = str_tokens if inputs is None else inputs.str_tokens
    if texts is None:
        return ("",) * length
    if not 0 <= example < len(texts) or len(texts[example]) != length:
        lengths = [len(row) for row in texts]
        raise LensplugError(f"texts are for {lengths} positions, example {example} of the result has {length}.")
    return tuple(texts[example])


def _short(text: str) -> str:
    return visible(text if len(text) <= LENGTH else text[: LENGTH - 1] + "…")
