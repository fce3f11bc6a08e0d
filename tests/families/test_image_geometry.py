"""The grid of every image family, with the large model's geometry: proved by painting on the picture.

A patch of a picture is painted; the real processor and the model's own encoder, projector and packing run on
both pictures, up to the embeddings that the language core receives. What changes there are the positions whose
boxes meet the patch. Nothing of this looks at a formula.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import date
from typing import Any

import numpy as np
import pytest
import torch
from support.image_families import BUILDERS, lens
from torch import Tensor

from lensplug.geometry import ImageGrid

QUESTION = "What is this ?"
PATCHES_EACH = 8
PAIRS = int(os.environ.get("LENSPLUG_PAIRS", "16"))
"""(picture, patch) pairs of a family: with 200, as this was first shown, it takes minutes."""
SEED = os.environ.get("LENSPLUG_SEED", str(date.today().toordinal()))
"""Other pictures every day."""
SHORTEST, LONGEST = 90, 900
RANGES = {
    "qwen2-vl": (40, 400), "qwen2.5-vl": (40, 400), "qwen2.5-omni": (40, 400), "mistral3": (40, 400),
    "glm4v": (40, 400), "glm46v": (40, 400), "glm-ocr": (40, 400), "lighton-ocr": (40, 400),
    "exaone4.5": (40, 400), "glm4v-moe": (40, 400), "glmga": (40, 400),
    "hyperclovax": (40, 400),
    "pixtral": (40, 300), "gemma3-pan": (300, 900),
}  # fmt: skip
"""Families that enlarge no picture have many positions in a small one; one that cuts, cuts only large ones."""


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 120, (height, width, 3), dtype=np.uint8)


def at_images(name: str, pictures: list[np.ndarray], *, attention: bool) -> tuple[Tensor, ImageGrid]:
    """The embeddings of each picture, all of one size, `[picture token d_model]`; and the grid of the first."""
    wrapped = lens(name, attention=attention)
    inputs = wrapped.prepare([QUESTION] * len(pictures), images=[[picture] for picture in pictures])
    grid = inputs.modality.image_grid()
    assert grid is not None
    places = [inputs.modality.image_positions(0, example) for example in range(len(pictures))]
    return torch.stack([row[at] for row, at in zip(inputs.embeds, places, strict=True)]), grid


def pairs(name: str, count: int, *, attention: bool) -> Iterator[tuple[ImageGrid, Any, Tensor]]:
    """(grid, painted box, how much each position's embedding changed), for random sizes and patches."""
    rng = random.Random(f"{name} {SEED}")
    for picture in range(count // PATCHES_EACH):
        height, width = (rng.randint(*RANGES.get(name, (SHORTEST, LONGEST))) for _ in range(2))
        pixels = noise(height, width, picture)
        before, grid = at_images(name, [pixels], attention=attention)
        inner = torch.cat([grid.boxes[:, :2].ceil(), grid.boxes[:, 2:].floor()], dim=1)
        with_area = ((inner[:, 2:] - inner[:, :2]) > 0).all(dim=1).nonzero()[:, 0].tolist()
        boxes = inner[rng.choices(with_area, k=PATCHES_EACH)].int().tolist()
        painted = []
        for x0, y0, x1, y1 in boxes:
            painted.append(pixels.copy())
            painted[-1][y0:y1, x0:x1] += 130
        for first in range(0, PATCHES_EACH, 4):  # all at once would need gigabytes for a dozen tiles each
            after, _ = at_images(name, painted[first : first + 4], attention=attention)
            for box, embeds in zip(boxes[first : first + 4], after, strict=True):
                yield grid, tuple(box), (embeds - before[0]).norm(dim=1)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_positions_that_change_are_those_whose_boxes_meet_the_painted_patch(name):
    """The tower's attention is switched off here: through it every patch knows of every other."""
    missed, beside, trials = 0, 0, 0
    for grid, box, change in pairs(name, PAIRS, attention=False):
        overlap = grid.overlap(box)
        assert float(change.max()) > 1e-3, "nothing changed: the picture does not reach the embeddings"
        # Scaling blends neighbouring pixels: what only touches the patch changes as well, and a little.
        missed += bool(((overlap > 0.5) & (change < 0.02 * change.max())).any())
        beside += bool(((change > 0.5 * change.max()) & (overlap == 0)).any())
        trials += 1
        assert not bool(change[grid.newline].any())
    print(
        f"{name}: {trials} pairs, {missed} with a position that should have changed, {beside} with one that should not"
    )
    assert (trials, missed, beside) == (PAIRS, 0, 0)


@pytest.mark.parametrize("name", ["llava", "llava-next", "llava-onevision", "internvl", "idefics3"])
def test_with_the_towers_attention_the_largest_change_is_where_the_patch_is(name):
    misses = [float(grid.overlap(box)[change.argmax()]) == 0 for grid, box, change in pairs(name, 40, attention=True)]
    print(f"{name}: {sum(misses)} of {len(misses)} largest changes elsewhere")
    assert len(misses) == 40 and sum(misses) == 0


@pytest.mark.parametrize("name", BUILDERS)
def test_painting_one_of_two_images_changes_the_positions_of_that_image(name):
    wrapped = lens(name, attention=False)
    first, second = noise(200, 300, 0), noise(400, 350, 1)
    inputs = wrapped.prepare([QUESTION, "one"], images=[[first, second], [second]])
    sizes = {key: (grid.height, grid.width) for key, grid in inputs.modality.grids.items()}
    assert sizes == {(0, 0): (200, 300), (0, 1): (400, 350), (1, 0): (400, 350)}
    changed = (wrapped.prepare([QUESTION, "one"], images=[[first, second + 90], [second]]).embeds - inputs.embeds).norm(
        dim=-1
    )
    moved = (changed > 1e-4).nonzero().tolist()
    assert {example for example, _ in moved} == {0}
    assert {pos for _, pos in moved} <= set(inputs.modality.image_positions(1, 0).tolist())
    assert len(moved) > 0.5 * len(inputs.modality.image_positions(1, 0))
