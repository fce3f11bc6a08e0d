"""The explorer: point at an image patch to see its logit lens in each layer, and the heads that attend to it.

Idea (after clemneo/llava-interp's page): two questions on one page. For a patch: which tokens does the logit lens
read from its residual stream after each layer, and which heads attend to it? For a token of the answer: where did
each layer and head attend when it was predicted? plotly and CircuitsVis draw; explorer.js only hands them the
numbers, which the page holds as one packed string.

When not to use it: the page shows raw attention and the raw logit lens, not relative to chance
(`head_specialization`) and not composed across layers (`attention_rollout`). It is descriptive: for a causal claim
use an intervention (`deletion_curve`, `activation_patching`).

    prompt = inputs.tokens.shape[1]
    attention = analysis.attention_from(cache, queries=range(prompt - 1, answer.inputs.tokens.shape[1] - 1))
    lens_at_patches = analysis.logit_lens(cache, positions=inputs.modality.image_positions())
    views.image_explorer(lens_at_patches, attention, answer.inputs).save("explorer.html")
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any
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
from lensplug.geometry import ImageGrid
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.validation.arguments import checked
from lensplug.views.explorer.arrays import (
    attention_on_chips,
    chips_of,
    initial_selection,
    logit_lens_arrays,
    mass_by_part,
    packed_to_fit,
    raster_of,
    shown,
)
from lensplug.views.explorer.packing import json_for_script
from lensplug.views.explorer.still import still_of
from lensplug.views.overlays.image import grid_of, picture_of
from lensplug.views.overlays.overlay import data_url, measured_note
from lensplug.views.overlays.unseen import NOTE, hatched
from lensplug.views.page.embedded import Embedded
from lensplug.views.page.page import Page, Section
from lensplug.views.style import FONT, HEAT, MONO


@dataclass(frozen=True)
class Explorer(Embedded):
    """An interactive image: displayed by a notebook, part of a page (`body`), or saved as a page of its own."""

    folder = "lensplug.views.explorer"
    style = "explorer.css"
    script = "explorer.js"

    facts: tuple[tuple[str, str], ...] = ()
    provenance: tuple[str, ...] = field(default=(), repr=False)
    height: int = 980
    """Height of its frame in a notebook, in pixels."""

    def to_html(self) -> str:
        """A page of its own that loads nothing."""
        return self._page().to_html()

    @checked
    def save(self, path: str | Path) -> Path:
        """Write that page; the file appears only once it is complete.

        Raises:
            LensplugError: If it cannot be written there.
        """
        return self._page().save(path)

    def _page(self) -> Page:
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
    """An image; for each patch the logit lens of each layer, and the heads that attend to it from each answer token.

    Args:
        logit_lens: `analysis.logit_lens` at the positions of the image (`inputs.modality.image_positions()`).
        attention: `analysis.attention_from` at the positions that predict the answer: the one before each of its
            tokens.
        inputs: The inputs that were run (`answer.inputs` of `lens.generate`).
        image: The image; not needed if `prepare` received it.
        media_index: Which image of the example.
        example: Which example.

    Raises:
        LensplugError: If the family has no geometry, the image is not available, the logit lens is not at exactly
            the image's positions, or the attention belongs to other inputs.
    """
    grid = grid_of(inputs, media_index, example)
    positions = inputs.modality.image_positions(media_index, example).cpu()
    _check(logit_lens, attention, inputs, positions, example)
    picture = picture_of(inputs, grid, image=image, media_index=media_index, example=example)
    drawn = hatched(picture, grid)
    weights = attention.values[example].permute(2, 0, 1, 3).float()  # [query layer head key]
    chips, of_position = chips_of(inputs, media_index, example)
    selection = initial_selection(weights[0][..., positions], grid)
    arrays = {
        **raster_of(grid),
        "boxes": grid.boxes.float().numpy(),
        "view": grid.view.numpy().astype(np.uint16),
        "positions": positions.numpy().astype(np.uint32),
        "totals": mass_by_part(weights[..., positions], grid),
        **logit_lens_arrays(logit_lens, example),
        **attention_on_chips(weights, of_position, len(chips)),
    }
    data, layout, steps = packed_to_fit(arrays, weights[..., positions].numpy())
    facts = {
        "arrays": layout, "steps": steps, "entries": logit_lens.entries, "start": selection,
        "answers": [_answer(inputs, int(query), example) for query in attention.queries[example]],
        "chips": chips, "width": grid.width, "height": grid.height, "picture": data_url(drawn),
        "style": {"veil": HEAT, "font": FONT, "mono": MONO},
        "newlines": int(grid.newline.sum()), "convention": logit_lens.provenance.convention,
    }  # fmt: skip
    body = _template().render(
        facts=Markup(json_for_script(facts)), data=Markup(data), start=selection, answers=facts["answers"],
        layers=weights.shape[1], heads=weights.shape[2], steps=steps, name=f"explorer-{uuid4().hex[:8]}",
        views=grid.views, notes=_notes(grid, is_hatched=drawn is not picture),
    )  # fmt: skip
    page_facts = (
        ("Model", logit_lens.provenance.model),
        ("Answer", "".join(answer["raw"] for answer in facts["answers"])),
    )
    conventions = [
        f"{source.analysis}: {source.convention}" for source in (logit_lens.provenance, attention.provenance)
    ]
    versions = ", ".join(f"{name} {number}" for name, number in logit_lens.provenance.versions.items())
    still = partial(still_of, logit_lens, weights, positions, inputs, picture, media_index, example)
    return Explorer(body, page_facts, (*conventions, f"{logit_lens.provenance.dtype}; {versions}"), still=still)


def _notes(grid: ImageGrid, *, is_hatched: bool) -> list[str]:
    """What has to be said under the picture."""
    measured = [] if grid.measured is None else [measured_note(grid.measured, "px")]
    return [*measured, *([NOTE] if is_hatched else [])]


def _check(
    logit_lens: LogitLens,
    attention: AttentionFrom,
    inputs: MultimodalInput,
    positions: Int[Tensor, " token"],
    example: int,
) -> None:
    lens_positions = logit_lens.positions[example] if example < len(logit_lens.positions) else torch.empty(0)
    if not torch.equal(lens_positions, positions):
        raise LensplugError(
            f"the logit lens has {len(lens_positions)} positions, expected the {len(positions)} of this image in"
            " order: analysis.logit_lens(cache, positions=inputs.modality.image_positions(media_index, example)). In a"
            " batch of prompts of different lengths, analyse the example alone."
        )
    examples, layers, _, queries, keys = attention.values.shape
    if keys != inputs.tokens.shape[1] or example >= examples:
        raise LensplugError(
            f"the attention has {examples} example(s) of {keys} positions, the inputs are {list(inputs.tokens.shape)}:"
            " pass the inputs that were run (answer.inputs after lens.generate)."
        )
    if layers != len(logit_lens.entries) - 1:
        raise LensplugError(f"the attention has {layers} layers, the logit lens {len(logit_lens.entries) - 1}.")
    if queries == 0:
        raise LensplugError("the attention has no query: pass attention_from the positions that predict the answer.")


def _answer(inputs: MultimodalInput, query: int, example: int) -> dict[str, Any]:
    """The token that a query position predicts: the next one; after the last position it is not known."""
    texts = inputs.str_tokens[example]
    is_known = query + 1 < len(texts)
    return {"text": shown(texts[query + 1]) if is_known else "(next)", "raw": texts[query + 1] if is_known else "",
            "query": query}  # fmt: skip


@cache
def _template() -> jinja2.Template:
    text = (files("lensplug.views.explorer") / "explorer.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
