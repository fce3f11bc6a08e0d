"""The explorer: point at a patch of the picture and see what it says in each layer, and which heads look at it.

Idea (after clemneo/llava-interp's page): two questions that are asked together. Of a patch: what would
each layer's residual stream say there (the logit lens), and which heads look at it? Of a word of the
answer: where did each layer and head look when it was written? One page answers both by pointing. plotly
and CircuitsVis draw; explorer.js only moves the numbers, which travel in one packed string.

When not to use it: the page shows attention and the lens as they are, not against chance
(`head_specialization`) and not through layers (`attention_rollout`); it shows, it does not test.

    prompt = inputs.tokens.shape[1]
    looked = analysis.attention_from(cache, queries=range(prompt - 1, answer.inputs.tokens.shape[1] - 1))
    said = analysis.logit_lens(cache, positions=inputs.modality.image_positions())
    views.image_explorer(said, looked, answer.inputs).save("explorer.html")
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import jinja2
import numpy as np
import torch
from jaxtyping import Float, Int
from markupsafe import Markup
from torch import Tensor

from lensplug.analysis.attention_from import AttentionFrom
from lensplug.analysis.logit_lens import LogitLens
from lensplug.errors import LensplugError
from lensplug.geometry import ImageGrid
from lensplug.inputs import MultimodalInput
from lensplug.views.image import picture_of
from lensplug.views.overlay import data_url
from lensplug.views.packing import inflatable, json_for_script, packed, quantised
from lensplug.views.style import visible

if TYPE_CHECKING:
    from lensplug.views.page import Page

STEPS = (255, 127, 63, 31, 15)
"""Attention is kept in as many steps as fit into `PACKED_BYTES`, the last of these at worst."""
PACKED_BYTES = 5_000_000
"""The most that the packed numbers may weigh: with plotly and CircuitsVis a page stays under 8 MB."""
LINES = 500
"""Boxes of patches are drawn on at most so many lines along each side."""
CHIPS = 300
"""A longer prompt is shown in runs of tokens, about so many."""
TOTALS = ("base", "tiles", "newlines", "nowhere")
"""The parts of the picture whose mass is given for each head."""


@dataclass(frozen=True)
class Explorer:
    """A picture to point at: shown by a notebook, put on a page (`body`), or saved as a page of its own."""

    body: str = field(repr=False)
    """Its panels and its data; the page has the scripts."""
    facts: tuple[tuple[str, str], ...] = ()
    provenance: tuple[str, ...] = field(default=(), repr=False)
    height: int = 980
    """Of its frame in a notebook, in pixels."""

    def to_html(self) -> str:
        """A page of its own that loads nothing."""
        return self._page().to_html()

    def save(self, path: str | Path) -> Path:
        """Write that page; the file appears only when it is whole."""
        return self._page().save(path)

    def _page(self) -> Page:
        from lensplug.views.page import Page, Section  # a page knows the explorer: not before it is asked for

        return Page("Patch by patch", self.facts, (Section("", "", (self,)),), self.provenance)

    def _repr_html_(self) -> str:
        document = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{document}" style="width:100%;height:{self.height}px;border:0"></iframe>'


def image_explorer(
    logit_lens: LogitLens,
    attention: AttentionFrom,
    inputs: MultimodalInput,
    *,
    image: object = None,
    media_index: int = 0,
    example: int = 0,
) -> Explorer:
    """A picture, its patches, what each layer says there, and which heads look there from each answer token.

    Args:
        logit_lens: `analysis.logit_lens` at the positions of the image (`inputs.modality.image_positions()`).
        attention: `analysis.attention_from` the positions that write the answer: the one before each of its tokens.
        inputs: The inputs that were run (`answer.inputs` of `lens.generate`).
        image: The picture; not needed where `prepare` was given it.
        media_index: Which image of the example.
        example: Which example.

    Raises:
        LensplugError: If the family has no geometry, the picture is not known, the logit lens is not of exactly
            the image's positions, or the attention is not of these inputs.
    """
    grid = inputs.modality.image_grid(media_index, example)
    if grid is None:
        raise LensplugError("this family has no geometry yet: its image tokens cannot be placed in the image.")
    positions = inputs.modality.image_positions(media_index, example).cpu()
    _check(logit_lens, attention, inputs, positions, example)
    picture = picture_of(inputs, grid, image=image, media_index=media_index, example=example)
    looked = attention.values[example].permute(2, 0, 1, 3).float()  # [query layer head key]
    raster = _raster(grid)
    chips, of_position = _chips(inputs, media_index, example)
    start = _start(looked[0][..., positions], grid)
    arrays = {
        **raster,
        "boxes": grid.boxes.float().numpy(),
        "view": grid.view.numpy().astype(np.uint16),
        "positions": positions.numpy().astype(np.uint32),
        "totals": _totals(looked[..., positions], grid),
        **_said(logit_lens, example),
        **_on_chips(looked, of_position, len(chips)),
    }
    data, layout, steps = _fitted(arrays, looked[..., positions].numpy())
    facts = {
        "arrays": layout, "steps": steps, "entries": logit_lens.entries, "start": start,
        "answers": [_answer(inputs, int(query), example) for query in attention.queries[example]],
        "chips": chips, "width": grid.width, "height": grid.height, "picture": data_url(picture),
        "newlines": int(grid.newline.sum()), "convention": logit_lens.provenance.convention,
    }  # fmt: skip
    body = _template().render(
        facts=Markup(json_for_script(facts)), data=Markup(data), start=start, answers=facts["answers"],
        layers=looked.shape[1], heads=looked.shape[2], steps=steps, name=f"explorer-{uuid4().hex[:8]}",
        views=grid.views,
    )  # fmt: skip
    about = (("Model", logit_lens.provenance.model), ("Answer", "".join(one["raw"] for one in facts["answers"])))
    made = [f"{one.analysis}: {one.convention}" for one in (logit_lens.provenance, attention.provenance)]
    versions = ", ".join(f"{name} {number}" for name, number in logit_lens.provenance.versions.items())
    return Explorer(body, about, (*made, f"{logit_lens.provenance.dtype}; {versions}"))


def _check(
    logit_lens: LogitLens,
    attention: AttentionFrom,
    inputs: MultimodalInput,
    positions: Int[Tensor, " token"],
    example: int,
) -> None:
    read = logit_lens.positions[example] if example < len(logit_lens.positions) else torch.empty(0)
    if not torch.equal(read, positions):
        raise LensplugError(
            f"the logit lens is of {len(read)} positions, expected the {len(positions)} of the image, in order:"
            " analysis.logit_lens(cache, positions=inputs.modality.image_positions())."
        )
    examples, layers, _, queries, keys = attention.values.shape
    if keys != inputs.tokens.shape[1] or example >= examples:
        raise LensplugError(
            f"the attention is of {examples} example(s) with {keys} positions, the inputs are"
            f" {list(inputs.tokens.shape)}: give the inputs that were run (answer.inputs after lens.generate)."
        )
    if layers != len(logit_lens.entries) - 1:
        raise LensplugError(f"the attention has {layers} layers, the logit lens {len(logit_lens.entries) - 1}.")
    if queries == 0:
        raise LensplugError("the attention has no query: give attention_from the positions that write the answer.")


def _shown(token: str) -> str:
    """A token as a reader can see it, as plain text: whoever puts it on the page escapes it."""
    return html.unescape(visible(token))


def _answer(inputs: MultimodalInput, query: int, example: int) -> dict[str, Any]:
    """The token that a query writes: the one after it; behind the last position nothing is known."""
    texts = inputs.str_tokens[example]
    known = query + 1 < len(texts)
    return {"text": _shown(texts[query + 1]) if known else "(next)", "raw": texts[query + 1] if known else "",
            "query": query}  # fmt: skip


def _raster(grid: ImageGrid) -> dict[str, np.ndarray]:
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


def _totals(
    looked: Float[Tensor, "query layer head token"], grid: ImageGrid
) -> Float[np.ndarray, "query layer head 4"]:
    """The mass of each head on the parts of the picture (`TOTALS`), exact."""
    seen = grid.placed
    parts = (seen & (grid.view == 0), seen & (grid.view > 0), grid.newline, ~seen & ~grid.newline)
    return torch.stack([looked[..., part].sum(dim=-1) for part in parts], dim=-1).numpy()


def _said(logit_lens: LogitLens, example: int) -> dict[str, np.ndarray]:
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
    said = logit_lens.top_texts[example]
    texts = [_shown(said[entry][token][k]) for entry, k, token in zip(entries, ks, tokens, strict=True)]
    probability = logit_lens.top_probabilities[example].permute(0, 2, 1).float().numpy()
    return {
        "texts": np.frombuffer(json_for_script(texts).encode(), dtype=np.uint8),
        "tokens": np.stack([number >> shift & 255 for shift in (0, 8, 16)]).astype(np.uint8),
        "probability": np.rint(np.sqrt(probability.clip(0, 1)) * STEPS[0]).astype(np.uint8),
    }


def _chips(inputs: MultimodalInput, media_index: int, example: int) -> tuple[list[str], Int[Tensor, " pos"]]:
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
            made = ["".join(map(_shown, texts[at : at + run])) for at in range(0, length, run)]
            keys = torch.arange(length) // run
        else:
            this = span.modality == "image" and span.media_index == media_index
            made, keys = ["[the picture]" if this else f"[{span.modality}]"], torch.zeros(length, dtype=torch.long)
        of_position[span.start : span.stop] = keys + len(chips)
        chips += made
    return chips, of_position


def _on_chips(
    looked: Float[Tensor, "query layer head key"], of_position: Int[Tensor, " key"], chips: int
) -> dict[str, np.ndarray]:
    kept = of_position >= 0
    sums = looked.new_zeros(*looked.shape[:3], chips).index_add_(3, of_position[kept], looked[..., kept])
    codes, largest = quantised(sums.numpy(), STEPS[0])
    return {"chip": codes, "chip_largest": largest}


def _start(looked: Float[Tensor, "layer head token"], grid: ImageGrid) -> dict[str, Any]:
    """What the page shows before anyone points: the patch that is looked at most, and the head that does so most."""
    patch = int(looked.mean(dim=(0, 1)).masked_fill(~grid.placed, -1).argmax())
    layer, head = divmod(int(looked[..., patch].argmax()), looked.shape[1])
    return {"patch": patch, "layer": layer, "head": head, "view": "tiles" if int(grid.view[patch]) else "base"}


def _fitted(arrays: dict[str, np.ndarray], looked: Float[np.ndarray, "query layer head token"]) -> tuple[str, Any, int]:
    """All arrays packed, with attention in as many steps as fit."""
    others = len(packed(arrays)[0])
    for steps in STEPS:
        codes, largest = quantised(looked, steps)
        if others + len(inflatable(codes.tobytes())) <= PACKED_BYTES:
            break
    data, layout = packed({**arrays, "attention": codes, "largest": largest})
    return data, layout, steps


@cache
def _template() -> jinja2.Template:
    text = (files("lensplug.views") / "explorer.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
