"""What of the explorer can be shown without a script: where the answer looked, and what the patches say that it saw."""

from __future__ import annotations

from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from lensplug.analysis.logits.logit_lens import LogitLens
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.views.explorer.arrays import shown
from lensplug.views.overlays.image import grid_of, image_overlay
from lensplug.views.page.embedded import Still
from lensplug.views.static.states import evenly

LAYERS, PATCHES, ENTRIES = 4, 8, 9
"""The most layers, patches and entries of the logit lens that are shown."""


def still_of(
    logit_lens: LogitLens,
    looked: Float[Tensor, "query layer head key"],
    positions: Int[Tensor, " token"],
    inputs: MultimodalInput,
    picture: Image.Image,
    media_index: int,
    example: int,
) -> Still:
    """The layers evenly spread, the patches that have most attention on average over layers and heads."""
    mean = looked[0].mean(dim=1)
    layers = evenly(len(mean), LAYERS)
    figure = image_overlay(
        {f"layer {layer}": mean[layer] for layer in layers}, inputs, image=picture, media_index=media_index,
        example=example, title="Attention of the answer's first token",
    )  # fmt: skip
    grid = grid_of(inputs, media_index, example)
    mass = mean.mean(dim=0)[positions].masked_fill(~grid.placed, -1)
    most = mass.topk(min(PATCHES, int(grid.placed.sum()))).indices.tolist()
    columns = evenly(len(logit_lens.entries), ENTRIES)
    rows = []
    for patch in most:
        x0, y0, x1, y1 = (round(side) for side in grid.boxes[patch].tolist())
        texts, known = logit_lens.top_texts[example], logit_lens.top_probabilities[example]
        cells = tuple((shown(texts[index][patch][0]), float(known[index, patch, 0])) for index in columns)
        rows.append((f"x {x0} to {x1}, y {y0} to {y1}: {float(mass[patch]):.2%} of the attention", cells))
    note = (
        "What each layer would say at the patches that the answer's first token attends to most. With scripts: point at"
        " any patch, and choose a token of the answer, a layer and a head."
    )
    head = ("patch (pixels)", *(str(logit_lens.entries[index]) for index in columns))
    return Still(figure, head, tuple(rows), note)
