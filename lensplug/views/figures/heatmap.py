"""Attention between named positions as a heat map, readable for hundreds of them.

Colour goes by the weight, from 0 to the largest. Where a few columns have nearly all of it, the others look empty, and
are small: a switch draws the square root instead, and ends the scale below the largest.
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
"""More are not drawn: a page of 5 MB, and less than a pixel for each."""
GAPS = 40
"""Up to this many rows and columns, cells are drawn with gaps between them."""
FEW, SINKS, CLIP = 20, 3, 16
"""By square root, of so many columns and more, as many cells as so many columns have may be beyond the scale, and the
scale ends at the largest weight over CLIP or higher: else the first token and the separators are all that is seen."""
SCALE = {
    "orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "len": 220, "lenmode": "pixels",
    "thickness": 8, "xpad": 0, "ypad": 4, "tickformat": ".2~g", "tickfont": {"size": 10},
    "ticklabelposition": "outside top", "outlinewidth": 0, "nticks": 5,
}  # fmt: skip
"""The colour bar, on the top left: where the picture is square, what is right of it may be far away."""
LENGTH = 22
"""Longer texts are cut."""
PAPER_TO_INK = [[0.0, "#ffffff"], [0.3, "#bcd7e6"], [0.6, "#4f8fbb"], [1.0, "#0b2545"]]
BY_ROOT = [
    [(step / 24) ** 2, color]
    for step, color in enumerate(sample_colorscale(PAPER_TO_INK, [step / 24 for step in range(25)]))
]
"""The square root of a weight over the largest tells its colour: what is 1 % of the largest is seen as 10 %."""
ColorScale = Literal["linear", "root"]
"""Colour by the weight, or by its square root."""
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
    """A weight for each row and column; the axes have as many names as there is room for.

    Args:
        values: From 0; NaN is left white.
        rows: Names, each different.
        columns: Names, each different.
        title: Of the figure.
        notes: What has to be said, below the title.
        hover: How the names are to be read, such as "%{y} looks at %{x}".
        height: Of the figure, without its title.
        scale: "linear", or "root": colour by the square root of the weight; what is shown first.

    Raises:
        LensplugError: If there are too many cells to draw or to see.
    """
    if values.numel() > CELLS:
        raise LensplugError(
            f"{len(rows)} x {len(columns)} cells cannot be seen, and weigh {values.numel() * 5.4 / 1e6:.0f} MB on a"
            " page: pool them (groups='words', or groups=[views.group_positions(inputs.modality)]), or draw chosen rows"
            " (views.attention_by_layer)."
        )
    known = values.nan_to_num(0)
    states = {name: _state(known, name, title, notes) for name in SCALES}
    gap = 1 if max(values.shape) <= GAPS else 0
    first, text = states[scale]
    heat = go.Heatmap(
        z=values.numpy(), x=list(columns), y=list(rows), **first, xgap=gap, ygap=gap,
        hovertemplate=f"{hover}: %{{z:.4f}}<extra></extra>", colorbar=SCALE,
    )  # fmt: skip
    fig = figure(heat, title="", height=height)
    titled(fig, title, _notes(notes, *_clipped(known, "root")))  # room for the longer of both
    fig.update_layout(title={"text": text})
    listed = [
        {
            "label": label,
            "method": "update",
            "args": [{**state, "colorscale": [state["colorscale"]]}, {"title.text": other}],
        }
        for label, (state, other) in zip(("linear", "square root"), states.values(), strict=True)
    ]
    menu = {"type": "buttons", "direction": "right", "buttons": listed, "active": SCALES.index(scale)}
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 2, "l": 240}, "font": {"size": 10}}
    fig.update_layout(updatemenus=[{**menu, **place}])
    room = 28  # for the colour bar
    fig.update_layout(margin={"b": 20, "l": 20, "t": fig.layout.margin.t + room}, height=fig.layout.height + room)
    fig.update_layout(title={"pad": {"t": 58}})  # plotly sets it higher where it makes room for long names
    fig.update_xaxes(type="category", tickangle=-90, tickfont={"size": 10}, automargin=True)
    fig.update_yaxes(type="category", autorange="reversed", tickfont={"size": 10}, automargin=True)
    return fig


def _state(values: Float[Tensor, "row column"], scale: str, title: str, notes: str) -> tuple[dict[str, Any], str]:
    """Colours, and the title that says them."""
    darkest, largest = _clipped(values, scale)
    colors = BY_ROOT if scale == "root" else PAPER_TO_INK
    said = _notes(notes, darkest, largest) if scale == "root" else f"{notes}; colour from 0 to {largest:.2g}"
    return {"colorscale": colors, "zmin": 0, "zmax": darkest or 1.0}, title_text(title, said)


def _clipped(values: Float[Tensor, "row column"], scale: str) -> tuple[float, float]:
    """The weight from which all look the same, and the largest."""
    largest = float(values.max())
    return (_darkest(values) if scale == "root" else largest), largest


def _notes(notes: str, darkest: float, largest: float) -> str:
    clipped = f", the darkest from {darkest:.2g} on (the largest weight is {largest:.2g})" if darkest < largest else ""
    return f"{notes}; colour by square root{clipped}"


def _darkest(values: Float[Tensor, "row column"]) -> float:
    """The weight from which all look the same: the largest, or less where a few columns have nearly all weight."""
    largest, columns = float(values.max()), values.shape[1]
    if columns < FEW:
        return largest
    usual = float(values.flatten().quantile(1 - SINKS / columns))
    return max(usual, largest / CLIP)


def numbered(texts: Sequence[str], positions: Sequence[int]) -> list[str]:
    """Each text and its position, so that no two are the same; the position alone where there is no text."""
    return [f"{_short(text)} {at}" if text else str(at) for text, at in zip(texts, positions, strict=True)]


def texts_for(
    length: int, *, inputs: MultimodalInput | None, str_tokens: Sequence[Sequence[str]] | None, example: int
) -> tuple[str, ...]:
    """The texts of the positions that a picture has: of inputs, as given, or "".

    Raises:
        LensplugError: If they are not one for each position.
    """
    given = str_tokens if inputs is None else inputs.str_tokens
    if given is None:
        return ("",) * length
    if not 0 <= example < len(given) or len(given[example]) != length:
        found = [len(row) for row in given]
        raise LensplugError(f"texts are for {found} positions, example {example} of the result has {length}.")
    return tuple(given[example])


def _short(text: str) -> str:
    return visible(text if len(text) <= LENGTH else text[: LENGTH - 1] + "…")
