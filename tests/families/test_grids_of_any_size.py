"""Families whose number of positions the processor decides: as many boxes as placeholders, for any size.

Everything here runs for real: the processor, the encoder, and the merging, which refuse other numbers.
"""

from __future__ import annotations

import os
import random
from datetime import date

import pytest
import torch
from PIL import Image
from support.cell_families import BUILDERS as CELLS
from support.counted_families import BUILDERS as COUNTED
from support.further_image_families import BUILDERS as FURTHER
from support.grid_checks import assert_paints, assert_tiles
from support.image_families import lens
from support.more_image_families import BUILDERS as MORE
from support.newer_image_families import BUILDERS as NEWER
from support.related_families import BUILDERS as RELATED
from transformers import Gemma3ImageProcessor

from lensplug import views
from lensplug.errors import LensplugError
from lensplug.families import gemma3
from lensplug.geometry.image_grid import VIEWS
from lensplug.inputs.multimodal_input import MultimodalInput

BUILDERS = {**NEWER, **MORE, **COUNTED, **FURTHER, **RELATED, **CELLS}
QUESTION = "What is this ?"
SEED = os.environ.get("LENSPLUG_SEED", str(date.today().toordinal()))
SIZES = int(os.environ.get("LENSPLUG_SIZES", "8"))
"""Random sizes a family; this was first shown for 100."""
EXTREME = [(1, 4000), (4000, 1), (1, 1), (20, 4000), (4000, 20)]
LIKE_QWEN_VL = (
    "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen2.5-omni", "glm4v", "glm46v", "glm-ocr", "paddleocr-vl",
    "video-llama-3", "qwen3.5", "qwen3.5-moe", "cosmos3-omni", "exaone4.5", "glm4v-moe", "glmga",
    "cohere-compass", "hyperclovax", "lfm3-vl", "cosmos3-edge", "hunyuan-vl", "qwen3-omni",
)  # fmt: skip
"""Families whose processors scale to whole cells, and take no picture 200 times as long as wide."""
NOT_TAKEN = {
    **dict.fromkeys(LIKE_QWEN_VL, lambda short, long: long > 200 * short),
    "lighton-ocr": lambda short, long: long > 1540 * short,
    "mistral3": lambda short, long: long > 1540 * short or long <= 28,  # its model cannot split one position
    "pixtral": lambda short, long: long > 1024 * short,
}
"""Which pictures a family's own processor or model refuses, by the lengths of their edges."""


def picture(height: int, width: int) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 50, 30))


def sizes_for(name: str, count: int) -> list[tuple[int, int]]:
    """Heights and widths, small ones and lengthy ones as often as others."""
    rng = random.Random(f"{name} {SEED}")
    return [(round(10 ** rng.uniform(0.3, 3.1)), round(10 ** rng.uniform(1, 3.1))) for _ in range(count)]


def sizes_seen(inputs: MultimodalInput) -> dict[tuple[int, int], tuple[int, int]]:
    return {place: (grid.height, grid.width) for place, grid in inputs.modality.grids.items()}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_picture_of_any_size_has_a_box_for_each_position(name):
    for size in [*EXTREME, *sizes_for(name, SIZES)]:
        if name == "video-llava" and size[0] in (1, 3):  # its processor takes so few rows for colours
            continue
        if name in NOT_TAKEN and NOT_TAKEN[name](min(size), max(size)):
            with pytest.raises(LensplugError, match="refused its inputs"):
                lens(name).prepare(QUESTION, images=[picture(*size)])
            continue
        inputs = lens(name).prepare(QUESTION, images=[picture(*size)])
        grid = inputs.modality.image_grid()
        assert grid is not None, size
        assert (grid.height, grid.width) == size
        assert len(grid) == int(inputs.modality.mask("image").sum())
        assert_tiles(grid)
        for view in VIEWS if size[0] * size[1] < 10**6 else ():
            assert_paints(grid, view)


@pytest.mark.parametrize("name", BUILDERS)
def test_several_pictures_in_each_prompt_have_their_own_grids(name):
    sizes = [[(60, 90), (200, 60), (60, 90)], [], [(130, 130)], [(90, 300), (45, 40)]]
    prompts = [QUESTION, "one", "two", "one two"]
    inputs = lens(name).prepare(prompts, images=[[picture(*size) for size in row] for row in sizes])
    assert sizes_seen(inputs) == {(row, i): size for row, own in enumerate(sizes) for i, size in enumerate(own)}
    for (example, index), grid in inputs.modality.grids.items():
        assert len(grid) == len(inputs.modality.image_positions(index, example))


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in ("llava-next-video", "granite-vision")])
def test_without_the_picture_there_is_no_grid_and_with_it_the_same(name):
    prepared = lens(name).prepare(QUESTION, images=[picture(120, 200)])
    outputs = dict(prepared.model_inputs)
    assert not lens(name).encode(outputs).modality.grids
    again = lens(name).encode(outputs, images=[picture(120, 200)]).modality.image_grid()
    expected = prepared.modality.image_grid()
    assert (
        again is not None
        and expected is not None
        and torch.equal(again.boxes.nan_to_num(-1), expected.boxes.nan_to_num(-1))
    )


@pytest.mark.parametrize("size", [(300, 700), (700, 300), (256, 1100), (1001, 257), (400, 400), (320, 500)])
def test_the_pieces_of_gemma_3_are_those_that_its_image_processor_cuts(size):
    """Each piece is told by its first and last pixel."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cut = Gemma3ImageProcessor().pan_and_scan_batched(torch.stack([x, y])[None], *gemma3.LIMITS.values())
    expected = [[*part[0, :, 0, 0].tolist(), *(part[0, :, -1, -1] + 1).tolist()] for part in cut]
    grid = gemma3.image_grid(height, width, 16, len(cut))
    assert grid is not None and len(grid) == 256 * (1 + len(cut))
    for view, box in enumerate(expected, start=1):
        boxes = grid.boxes[grid.view == view]
        assert [*boxes[:, :2].amin(dim=0).tolist(), *boxes[:, 2:].amax(dim=0).tolist()] == box


def test_how_often_several_pictures_of_gemma_3_were_cut_is_known_or_nothing_is():
    whole, long = picture(400, 400), picture(300, 700)
    count = gemma3.piece_counts
    cutting = Gemma3ImageProcessor()
    assert count(cutting, [(400, 400), (300, 700)], views=2) == [0, 0]
    assert count(cutting, [(400, 400), (300, 700)], views=4) == [0, 2]
    assert count(cutting, [(400, 400), (300, 700)], views=5) is None
    assert count(None, [(400, 400), (300, 700)], views=4) is None
    assert count(None, [(300, 700)], views=4) == [3]
    grid = lens("gemma3-pan").prepare(QUESTION, images=[whole, long]).modality.image_grid(1)
    assert grid is not None and grid.view.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen2.5-omni", "video-llama-3", "mistral3", "pixtral"]
)
def test_another_picture_than_the_processor_saw_is_noticed_where_sizes_vary(name):
    outputs = dict(lens(name).prepare(QUESTION, images=[picture(120, 200)]).model_inputs)
    with pytest.warns(UserWarning, match="not those that the processor saw.*its sizes differ"):
        lens(name).encode(outputs, images=[picture(200, 120)])


def test_the_words_between_the_tiles_of_ovis_2_are_words_and_those_of_video_llava_of_three_rows_have_no_grid():
    inputs = lens("ovis2").prepare(QUESTION, images=[picture(120, 200)])
    texts = [
        text
        for text, name in zip(inputs.str_tokens[0], inputs.modality.position_names[0], strict=True)
        if name == "text"
    ]
    assert [text for text in texts if text.startswith("<IMG")] == [
        "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_COL>", "<IMG_END>",
    ]  # fmt: skip
    assert lens("video-llava").prepare(QUESTION, images=[picture(3, 200)]).modality.image_grid() is None


def test_positions_of_a_resampler_have_no_place_and_the_overlay_says_why():
    wrapped = lens("idefics2")
    inputs = wrapped.prepare([QUESTION, "one"], images=[[picture(120, 200), picture(60, 60)], [picture(60, 60)]])
    assert inputs.modality.image_grid() is None and not inputs.modality.grids
    assert [len(inputs.modality.image_positions(index, 0)) for index in (0, 1)] == [4, 4]
    reason = r"this image has no grid.*: a resampler \(Perceiver\) makes its positions, each from all of a view"
    for some in (inputs, inputs[0:1], inputs[:, : inputs.tokens.shape[1]]):
        with pytest.raises(LensplugError, match=reason):
            views.image_overlay(torch.rand(inputs.tokens.shape[1]), some)
    assert not lens("janus").prepare(QUESTION, images=[picture(60, 60)]).modality.no_place
