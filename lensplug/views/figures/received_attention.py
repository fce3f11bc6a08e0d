"""The attention matrix of a layer with modality bands, and the attention that each token receives."""

from __future__ import annotations

from dataclasses import replace
from textwrap import wrap

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from lensplug.analysis.attention.received_attention import ReceivedAttention
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.by_modality import MEDIA
from lensplug.validation.arguments import at_least, checked
from lensplug.views.figures.block_means import block_means, block_size
from lensplug.views.style import MODALITY_COLORS, figure, visible

CELLS = 220
"""Maximum number of rows drawn: a larger matrix is drawn as block means."""
LABELS = 36
"""Maximum number of tokens named, so that names do not overlap in a figure 480 pixels wide."""
COLORS = {**MODALITY_COLORS, "": "#7a8794"}
"""Colors by modality; "" is a position of unknown modality."""


@checked
def received_attention(
    result: ReceivedAttention, *, inputs: MultimodalInput | None = None, example: int = 0, top: int = 25
) -> go.Figure:
    """The scaled matrix as a heat map with modality bands, and the column means below it as bars.

    The `top` tokens that receive most are named, and media positions as far as there is room; the positions of a medium
    are numbered from 0.

    Args:
        result: From `analysis.received_attention`.
        inputs: For text and modality of the positions, if the result was computed without them.
        example: Which example.
        top: How many tokens to name.

    Raises:
        LensplugError: If there is no such example, or the inputs are not those of the result.
    """
    at_least(1, top=top)
    if inputs is not None:
        result = _with_names(result, inputs)
    top_positions = [position for position, _, _ in result.top(top, example=example)]
    values = result.values[example]
    shown_positions = (~values.isnan()).nonzero()[:, 0]
    names = [result.modalities[example][i] for i in shown_positions.tolist()]
    texts = _texts(result, example)
    fig = make_subplots(
        rows=3, cols=2, column_widths=[0.015, 0.985], row_heights=[0.71, 0.015, 0.275], horizontal_spacing=0.006,
        vertical_spacing=0.008, shared_xaxes=True,
    )  # fmt: skip
    size = block_size(len(shown_positions), CELLS)
    fig.add_trace(_matrix(result, example, shown_positions.tolist(), size), row=1, col=2)
    fig.add_trace(_band(names, shown_positions.tolist(), upright=True), row=1, col=1)
    fig.add_trace(_band(names, shown_positions.tolist(), upright=False), row=2, col=2)
    for name in dict.fromkeys(names):
        positions_of_name = [
            i for i, position_name in zip(shown_positions.tolist(), names, strict=True) if position_name == name
        ]
        fig.add_trace(
            go.Bar(
                x=positions_of_name, y=[round(float(values[i]), 4) for i in positions_of_name],
                name=name or "modality unknown", width=1,
                marker={"color": COLORS[name], "line": {"width": 0}}, customdata=[texts[i] for i in positions_of_name],
                hovertemplate="%{customdata} (position %{x}): %{y:.3f}<extra></extra>", showlegend=bool(name),
            ),
            row=3, col=2,
        )  # fmt: skip
    media = [i for i, name in zip(shown_positions.tolist(), names, strict=True) if name in MEDIA]
    labelled = _spaced(top_positions + media, max(1.0, len(shown_positions) / LABELS))
    pooled = f"; matrix in blocks of {size}, averaged" if size > 1 else ""
    _lay_out(fig, result.provenance.convention + pooled, int(shown_positions[0]), int(shown_positions[-1]))
    fig.update_xaxes(
        tickvals=labelled, ticktext=[texts[i] for i in labelled], tickangle=-90, tickfont={"size": 9}, row=3, col=2
    )
    return fig


def _lay_out(fig: go.Figure, convention: str, first: int, last: int) -> None:
    """Title, legend and axes."""
    lines = wrap(convention, 62)  # fits a figure 480 pixels wide
    title = "Received attention" + "".join(f"<br><sub>{line}</sub>" for line in lines)
    fig.update_layout(figure(title=title, height=640).layout)
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
    fig.update_layout(margin={"t": 84 + 18 * len(lines)}, legend=legend)
    fig.update_layout(title={"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 34}})
    for row in (1, 2, 3):
        fig.update_xaxes(range=[first - 0.5, last + 0.5], showticklabels=row == 3, row=row, col=2)
        fig.update_xaxes(visible=False, row=row, col=1)
        fig.update_yaxes(visible=False, row=row, col=1)
    for column in (1, 2):
        fig.update_yaxes(range=[last + 0.5, first - 0.5], showticklabels=False, row=1, col=column)
    fig.update_yaxes(title="query", visible=True, row=1, col=1)
    fig.update_yaxes(visible=False, row=2, col=2)
    fig.update_yaxes(title="received", rangemode="tozero", gridcolor="#eceef0", row=3, col=2)


def _matrix(result: ReceivedAttention, example: int, positions: list[int], size: int) -> go.Heatmap:
    """The matrix as block means; masked entries are left empty."""
    blocks = block_means(result.matrix[example][positions][:, positions], size)
    is_visible = (result.matrix if result.visible is None else result.visible)[example][positions][:, positions]
    drawn_blocks = blocks.masked_fill(block_means(is_visible.float(), size) == 0, torch.nan)
    middles = [sum(part) / len(part) for part in (positions[i : i + size] for i in range(0, len(positions), size))]
    return go.Heatmap(
        z=[[round(v, 3) if v == v else None for v in row] for row in drawn_blocks.tolist()], x=middles, y=middles,
        colorscale=[[0, "#f7f6f3"], [0.4, "#9ec3d8"], [1, "#12355b"]],
        colorbar={"thickness": 10, "y": 1, "yanchor": "top", "len": 0.7},
        hovertemplate="position %{y} attends to %{x}: %{z:.3f}<extra></extra>",
    )  # fmt: skip


def _band(names: list[str], positions: list[int], *, upright: bool) -> go.Heatmap:
    """A stripe with the modality color of each position."""
    order = list(COLORS)
    scale = [[(i + end) / len(order), COLORS[name]] for i, name in enumerate(order) for end in (0, 1)]
    stripe = [order.index(name) for name in names]
    return go.Heatmap(
        z=[[code] for code in stripe] if upright else [stripe],
        x=[0] if upright else positions, y=positions if upright else [0],
        colorscale=scale, zmin=-0.5, zmax=len(order) - 0.5, showscale=False, hoverinfo="skip",
    )  # fmt: skip


def _with_names(result: ReceivedAttention, inputs: MultimodalInput) -> ReceivedAttention:
    if tuple(inputs.tokens.shape) != tuple(result.values.shape):
        raise LensplugError(
            f"the inputs are {list(inputs.tokens.shape)}, the result {list(result.values.shape)}: give the inputs that"
            " were run."
        )
    modalities = tuple(map(tuple, inputs.modality.position_names))
    return replace(result, modalities=modalities, str_tokens=tuple(map(tuple, inputs.str_tokens)))


def _texts(result: ReceivedAttention, example: int) -> list[str]:
    """A name for each position: media by number, text tokens by their text, others by position."""
    next_number = dict.fromkeys(MEDIA, 0)
    texts = []
    for position, (name, token) in enumerate(zip(result.modalities[example], result.str_tokens[example], strict=True)):
        if name in next_number:
            texts.append(f"{name} {next_number[name]}")
            next_number[name] += 1
        else:
            texts.append(visible(token) if token else str(position))
    return texts


def _spaced(candidates: list[int], distance: float) -> list[int]:
    """The columns, in order of preference, that are at least `distance` apart."""
    chosen: list[int] = []
    for column in candidates:
        if all(abs(column - chosen_column) >= distance for chosen_column in chosen):
            chosen.append(column)
    return sorted(chosen)
