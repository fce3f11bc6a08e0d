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
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import jinja2
import numpy as np
import torch
from jaxtyping import Int
from markupsafe import Markup
from torch import Tensor

from lensplug.analysis.attention.attention_from import AttentionFrom
from lensplug.analysis.logits.logit_lens import LogitLens
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.validation.arguments import checked
from lensplug.views.explorer.arrays import chips_of, fitted, on_chips, raster_of, said, shown, start_of, totals
from lensplug.views.explorer.packing import json_for_script
from lensplug.views.overlays.image import grid_of, picture_of
from lensplug.views.overlays.overlay import data_url
from lensplug.views.style import FONT, HEAT, MONO

if TYPE_CHECKING:
    from lensplug.views.page.page import Page


@dataclass(frozen=True)
class Explorer:
    """A picture to point at: shown by a notebook, put on a page (`body`), or saved as a page of its own."""

    body: str = field(repr=False)
    """Its panels and its data; the page has the scripts."""
    facts: tuple[tuple[str, str], ...] = ()
    provenance: tuple[str, ...] = field(default=(), repr=False)
    height: int = 980
    """Height of its frame in a notebook, in pixels."""

    def to_html(self) -> str:
        """A page of its own that loads nothing."""
        return self._page().to_html()

    @checked
    def save(self, path: str | Path) -> Path:
        """Write that page; the file appears only when it is whole.

        Raises:
            LensplugError: If it cannot be written there.
        """
        return self._page().save(path)

    def _page(self) -> Page:
        from lensplug.views.page.page import Page, Section  # a page knows the explorer: not before it is asked for

        return Page("Patch by patch", self.facts, (Section("", "", (self,)),), self.provenance)

    def _repr_html_(self) -> str:
        document = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{document}" style="width:100%;height:{self.height}px;border:0"></iframe>'


@checked
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
    grid = grid_of(inputs, media_index, example)
    positions = inputs.modality.image_positions(media_index, example).cpu()
    _check(logit_lens, attention, inputs, positions, example)
    picture = picture_of(inputs, grid, image=image, media_index=media_index, example=example)
    looked = attention.values[example].permute(2, 0, 1, 3).float()  # [query layer head key]
    chips, of_position = chips_of(inputs, media_index, example)
    start = start_of(looked[0][..., positions], grid)
    arrays = {
        **raster_of(grid),
        "boxes": grid.boxes.float().numpy(),
        "view": grid.view.numpy().astype(np.uint16),
        "positions": positions.numpy().astype(np.uint32),
        "totals": totals(looked[..., positions], grid),
        **said(logit_lens, example),
        **on_chips(looked, of_position, len(chips)),
    }
    data, layout, steps = fitted(arrays, looked[..., positions].numpy())
    facts = {
        "arrays": layout, "steps": steps, "entries": logit_lens.entries, "start": start,
        "answers": [_answer(inputs, int(query), example) for query in attention.queries[example]],
        "chips": chips, "width": grid.width, "height": grid.height, "picture": data_url(picture),
        "style": {"veil": HEAT, "font": FONT, "mono": MONO},
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
            f"the logit lens is of other positions ({len(read)}) than those of this image ({len(positions)}), in order:"
            " analysis.logit_lens(cache, positions=inputs.modality.image_positions(media_index, example)). Of a batch"
            " of unequal prompts, analyse the example alone."
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


def _answer(inputs: MultimodalInput, query: int, example: int) -> dict[str, Any]:
    """The token that a query writes: the one after it; behind the last position nothing is known."""
    texts = inputs.str_tokens[example]
    known = query + 1 < len(texts)
    return {"text": shown(texts[query + 1]) if known else "(next)", "raw": texts[query + 1] if known else "",
            "query": query}  # fmt: skip


@cache
def _template() -> jinja2.Template:
    text = (files("lensplug.views.explorer") / "explorer.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
