"""The numbers of the explorer, made small: where patches lie, what each layer says there, which heads look there.

explorer.py puts them on a page and explorer.js reads them there.
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
"""Attention is kept in as many steps as fit into `PACKED_BYTES`, the last of these at worst."""
PACKED_BYTES = 3_600_000
"""The most that the packed numbers may weigh: with its libraries and a report's figures a page stays under 8 MB."""
LINES = 500
"""Maximum number of grid lines along each side on which patch boxes are drawn."""
CHIPS = 300
"""Approximate maximum number of prompt cells: a longer prompt is shown in runs of tokens."""
TOTALS = ("base", "tiles", "newlines", "nowhere")
"""The parts of the picture whose mass is given for each head."""


def shown(token: str) -> str:
    """A token as a reader can see it, as plain text: whoever puts it on the page escapes it."""
    return html.unescape(visible(token))


def raster_of(grid: ImageGrid) -> dict[str, np.ndarray]:
    """Lines along both sides, and for the base view and the tiles the token (+ 1) in each cell between them.

    So a browser paints and finds patches by looking up, whatever the shape of the grid.
    """
    placed = grid.placed.numpy()
    if not placed.any():
        raise LensplugError("no token of this image has a place in it: there is nothing to point at.")
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


def totals(looked: Float[Tensor, "query layer head token"], grid: ImageGrid) -> Float[np.ndarray, "query layer head 4"]:
    """The mass of each head on the parts of the picture (`TOTALS`), exact."""
    seen = grid.placed
    parts = (seen & (grid.view == 0), seen & (grid.view > 0), grid.newline, ~seen & ~grid.newline)
    return torch.stack([looked[..., part].sum(dim=-1) for part in parts], dim=-1).numpy()


def said(logit_lens: LogitLens, example: int) -> dict[str, np.ndarray]:
    """The logit lens: probabilities in steps, tokens as numbers of three bytes into a table of texts."""
    ids = (
        logit_lens.top_tokens[example].permute(0, 2, 1).numpy()
    )  # [entry k token]: neighbours are alike, and pack well
    unique, first, inverse, count = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    often = np.argsort(-count, kind="stable")
    place = np.empty(len(often), dtype=np.uint32)
    place[often] = np.arange(len(often))
    number = place[inverse].reshape(ids.shape)
    entries, ks, tokens = np.unravel_index(first[often], ids.shape)
    listed = logit_lens.top_texts[example]
    texts = [shown(listed[entry][token][k]) for entry, k, token in zip(entries, ks, tokens, strict=True)]
    probability = logit_lens.top_probabilities[example].permute(0, 2, 1).float().numpy()
    return {
        "texts": np.frombuffer(json_for_script(texts).encode(), dtype=np.uint8),
        "tokens": np.stack([number >> shift & 255 for shift in (0, 8, 16)]).astype(np.uint8),
        "probability": np.rint(np.sqrt(probability.clip(0, 1)) * STEPS[0]).astype(np.uint8),
    }


def chips_of(inputs: MultimodalInput, media_index: int, example: int) -> tuple[list[str], Int[Tensor, " pos"]]:
    """The prompt and answer as chips: words by token (or short run), each medium as one; and the chip of a position."""
    of_position = torch.full((inputs.tokens.shape[1],), -1)
    spans = [span for span in inputs.modality.spans if span.example == example and span.modality != "pad"]
    words = sum(span.stop - span.start for span in spans if span.modality in ("text", "generated"))
    run = math.ceil(words / CHIPS)
    chips: list[str] = []
    for span in spans:
        length = span.stop - span.start
        if span.modality in ("text", "generated"):
            texts = inputs.str_tokens[example][span.start : span.stop]
            made = ["".join(map(shown, texts[at : at + run])) for at in range(0, length, run)]
            keys = torch.arange(length) // run
        else:
            this = span.modality == "image" and span.media_index == media_index
            made, keys = ["[the picture]" if this else f"[{span.modality}]"], torch.zeros(length, dtype=torch.long)
        of_position[span.start : span.stop] = keys + len(chips)
        chips += made
    return chips, of_position


def on_chips(
    looked: Float[Tensor, "query layer head key"], of_position: Int[Tensor, " key"], chips: int
) -> dict[str, np.ndarray]:
    """Attention on each chip."""
    kept = of_position >= 0
    sums = looked.new_zeros(*looked.shape[:3], chips).index_add_(3, of_position[kept], looked[..., kept])
    codes, largest = quantised(sums.numpy(), STEPS[0])
    return {"chip": codes, "chip_largest": largest}


def start_of(looked: Float[Tensor, "layer head token"], grid: ImageGrid) -> dict[str, Any]:
    """What the page shows before anyone points: the patch that is looked at most, and the head that does so most."""
    patch = int(looked.mean(dim=(0, 1)).masked_fill(~grid.placed, -1).argmax())
    layer, head = divmod(int(looked[..., patch].argmax()), looked.shape[1])
    return {"patch": patch, "layer": layer, "head": head, "view": "tiles" if int(grid.view[patch]) else "base"}


def fitted(arrays: dict[str, np.ndarray], looked: Float[np.ndarray, "query layer head token"]) -> tuple[str, Any, int]:
    """All arrays packed, with attention in as many steps as fit."""
    others = len(packed(arrays)[0])
    for steps in STEPS:
        codes, largest = quantised(looked, steps)
        if others + len(inflatable(codes.tobytes())) <= PACKED_BYTES:
            break
    data, layout = packed({**arrays, "attention": codes, "largest": largest})
    return data, layout, steps
