"""The arrays behind the explorer, in compact form: patch boxes, logit lens per layer, attention per head.

explorer.py writes them into the page; explorer.js reads them there.
"""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.logits.logit_lens import LogitLens
from lensplug.errors import LensplugError
from lensplug.geometry import ImageGrid
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.views.explorer.packing import inflatable, json_for_script, packed, quantised
from lensplug.views.style import visible

STEPS = (255, 127, 63, 31, 15)
"""Quantisation levels of attention: the largest that fits into `PACKED_BYTES` is used, at worst the last."""
PACKED_BYTES = 3_600_000
"""Maximum size of the packed arrays: with libraries and a report's figures, a page then stays below 8 MB."""
LINES = 500
"""Maximum number of grid lines along each side on which patch boxes are drawn."""
CHIPS = 300
"""Approximate maximum number of prompt cells: a longer prompt is shown in runs of tokens."""
TOTALS = ("base", "tiles", "newlines", "nowhere")
"""Parts of the image for which the attention mass of each head is stored."""


def shown(token: str) -> str:
    """A token made visible, as plain text; the caller escapes it for HTML."""
    return html.unescape(visible(token))


def raster_of(grid: ImageGrid) -> dict[str, np.ndarray]:
    """Grid lines along both axes and, for base view and tiles, the index of the token (+ 1) in each cell; 0 is none.

    The browser then draws and finds patches by table lookup, whatever the shape of the grid.
    """
    placed = grid.placed.numpy()
    if not placed.any():
        raise LensplugError("no token of this image has a place in it: the explorer has no patch to show.")
    sizes = np.array([grid.width, grid.height])
    corners = np.clip(grid.boxes.double().nan_to_num().numpy().reshape(-1, 2, 2), 0, sizes)
    lines, ends = [], []
    for axis, size in enumerate(sizes):
        side = corners[:, :, axis].round(2)
        if len(np.unique(side)) > LINES:
            side = (side / size * LINES).round() * size / LINES
        lines.append(np.unique(np.append(side[placed], [0, size])))
        ends.append(np.searchsorted(lines[axis], side))
    cells = np.zeros((2, len(lines[1]) - 1, len(lines[0]) - 1), dtype=np.uint16)
    for token in np.flatnonzero(placed):
        (x0, x1), (y0, y1) = ends[0][token], ends[1][token]
        cells[int(grid.view[token] > 0), y0:y1, x0:x1] = token + 1
    return {"x": lines[0].astype(np.float32), "y": lines[1].astype(np.float32), "cells": cells}


def mass_by_part(
    attention: Float[Tensor, "query layer head token"], grid: ImageGrid
) -> Float[np.ndarray, "query layer head 4"]:
    """Attention mass of each head on the parts of the image (`TOTALS`), not quantised."""
    placed = grid.placed
    parts = (placed & (grid.view == 0), placed & (grid.view > 0), grid.newline, ~placed & ~grid.newline)
    return torch.stack([attention[..., part].sum(dim=-1) for part in parts], dim=-1).numpy()


def logit_lens_arrays(logit_lens: LogitLens, example: int) -> dict[str, np.ndarray]:
    """The logit lens: quantised probabilities, and tokens as 3-byte indices into a table of texts."""
    ids = logit_lens.top_tokens[example].permute(0, 2, 1).numpy()  # [entry k token]: similar neighbours compress well
    unique, first_index, inverse, count = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    by_frequency = np.argsort(-count, kind="stable")
    index_of = np.empty(len(by_frequency), dtype=np.uint32)
    index_of[by_frequency] = np.arange(len(by_frequency))
    numbers = index_of[inverse].reshape(ids.shape)
    entries, ranks, tokens = np.unravel_index(first_index[by_frequency], ids.shape)
    top_texts = logit_lens.top_texts[example]
    texts = [shown(top_texts[entry][token][k]) for entry, k, token in zip(entries, ranks, tokens, strict=True)]
    probability = logit_lens.top_probabilities[example].permute(0, 2, 1).float().numpy()
    return {
        "texts": np.frombuffer(json_for_script(texts).encode(), dtype=np.uint8),
        "tokens": np.stack([numbers >> shift & 255 for shift in (0, 8, 16)]).astype(np.uint8),
        "probability": np.rint(np.sqrt(probability.clip(0, 1)) * STEPS[0]).astype(np.uint8),
    }


def chips_of(inputs: MultimodalInput, media_index: int, example: int) -> tuple[list[str], Int[Tensor, " pos"]]:
    """Prompt and answer as chips (a text token, a short run of them, or a medium), and the chip of each position."""
    of_position = torch.full((inputs.tokens.shape[1],), -1)
    spans = [span for span in inputs.modality.spans if span.example == example and span.modality != "pad"]
    words = sum(span.stop - span.start for span in spans if span.modality in ("text", "generated"))
    tokens_per_chip = math.ceil(words / CHIPS)
    chips: list[str] = []
    for span in spans:
        length = span.stop - span.start
        if span.modality in ("text", "generated"):
            tokens = inputs.str_tokens[example][span.start : span.stop]
            texts_of_span = [
                "".join(map(shown, tokens[start : start + tokens_per_chip]))
                for start in range(0, length, tokens_per_chip)
            ]
            keys = torch.arange(length) // tokens_per_chip
        else:
            is_shown_image = span.modality == "image" and span.media_index == media_index
            texts_of_span, keys = (
                ["[the picture]" if is_shown_image else f"[{span.modality}]"],
                torch.zeros(length, dtype=torch.long),
            )
        of_position[span.start : span.stop] = keys + len(chips)
        chips += texts_of_span
    return chips, of_position


def attention_on_chips(
    attention: Float[Tensor, "query layer head key"], of_position: Int[Tensor, " key"], chips: int
) -> dict[str, np.ndarray]:
    """Attention mass on each chip, quantised."""
    on_chip = of_position >= 0
    sums = attention.new_zeros(*attention.shape[:3], chips).index_add_(3, of_position[on_chip], attention[..., on_chip])
    codes, largest = quantised(sums.numpy(), STEPS[0])
    return {"chip": codes, "chip_largest": largest}


def initial_selection(attention: Float[Tensor, "layer head token"], grid: ImageGrid) -> dict[str, Any]:
    """The initial selection: the patch with the most attention, and the head that attends to it most."""
    patch = int(attention.mean(dim=(0, 1)).masked_fill(~grid.placed, -1).argmax())
    layer, head = divmod(int(attention[..., patch].argmax()), attention.shape[1])
    return {"patch": patch, "layer": layer, "head": head, "view": "tiles" if int(grid.view[patch]) else "base"}


def packed_to_fit(
    arrays: dict[str, np.ndarray], attention: Float[np.ndarray, "query layer head token"]
) -> tuple[str, Any, int]:
    """All arrays packed, with attention at the finest quantisation that fits."""
    other_bytes = len(packed(arrays)[0])
    for steps in STEPS:
        codes, largest = quantised(attention, steps)
        if other_bytes + len(inflatable(codes.tobytes())) <= PACKED_BYTES:
            break
    data, layout = packed({**arrays, "attention": codes, "largest": largest})
    return data, layout, steps
