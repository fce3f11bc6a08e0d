"""Parts of figures that have a cell for each layer and head."""

from __future__ import annotations

import math

import plotly.graph_objects as go
from jaxtyping import Float, Int
from torch import Tensor

NUMBERED = 16
"""Maximum number of heads for which cells have their value written in."""


def cells(values: Float[Tensor, "layer head"]) -> list[list[float | None]]:
    """The values of a heat map; nothing for NaN."""
    return [[None if value != value else round(value, 5) for value in row] for row in values.tolist()]


def written(values: Float[Tensor, "layer head"], form: str = ".2f") -> list[list[str]]:
    """The values as texts in the cells, where there is room for them."""
    if values.shape[1] > NUMBERED:
        return [[""] * values.shape[1] for _ in values]
    return [["" if value != value else format(value, form) for value in row] for row in values.tolist()]


def axes_of_heads(fig: go.Figure, layers: int, heads: int, **place: Int[Tensor, ""] | int) -> None:
    """Names and marks of the axes: heads across, layers down."""
    fig.update_xaxes(
        title="head", dtick=max(1, math.ceil(heads / 32)), constrain="domain", showgrid=False, zeroline=False, **place
    )
    fig.update_yaxes(
        title="layer", dtick=1 if layers <= 32 else 4, autorange="reversed", showgrid=False, zeroline=False, **place
    )
