"""The grid of every image family: its number of positions, boxes that tile each view, and when there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.grid_checks import assert_paints, assert_tiles
from support.image_families import lens
from transformers import CLIPImageProcessor, LlavaImageProcessor

from lensplug.errors import LensplugError
from lensplug.families import anyres, idefics3, internvl, llava, llava_onevision
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_grid import VIEWS

QUESTION = "What is this ?"
WITHOUT_SIZES = ["llava", "llava-full", "internvl", "idefics3"]
"""Families whose processor does not say how large an image was."""

BY_RULE = [
    "llava", "llava-full", "llava-padded", "llava-squeezed", "llava-next", "llava-onevision", "internvl", "idefics3",
]  # fmt: skip
"""Families whose rule gives the grid of any size, without an image."""

COUNTS = {
    (384, 384): {"llava": 576, "llava-next": 2928, "llava-onevision": 1485, "internvl": 256, "idefics3": 17 * 169},
    (480, 640): {"llava": 576, "llava-next": 2340, "llava-onevision": 2929, "internvl": 13 * 256, "idefics3": 13 * 169},
    (768, 768): {"llava": 576, "llava-next": 2928, "llava-onevision": 3699, "internvl": 5 * 256, "idefics3": 17 * 169},
    (1080, 1920): {"llava": 576, "llava-next": 1948, "llava-onevision": 7269, "internvl": 9 * 256, "idefics3": 2197},
    (2304, 2304): {"llava": 576, "llava-next": 2928, "llava-onevision": 7371, "internvl": 2560, "idefics3": 17 * 169},
    (1, 4000): {"llava-next": 576, "llava-onevision": 757, "internvl": 13 * 256, "idefics3": 5 * 169},
    (4000, 1): {"llava-next": 600, "llava-onevision": 783, "internvl": 13 * 256, "idefics3": 5 * 169},
}
"""(height, width) -> positions, by each processor's own count; LLaVA would scale an edge of 1 px to 336, the other to
1.3 million."""


def image_grid(name: str, height: int, width: int) -> ImageGrid:
    """As `prepare` makes it, without the image."""
    wrapped = lens(name)
    config, settings_ = wrapped.hf_model.config, wrapped.processor.image_processor
    if name == "llava-onevision":
        return llava_onevision.image_grid(config, height, width)
    if name == "llava-next":
        return anyres.anyres_grid(config, height, width)
    if name == "internvl":
        views = wrapped.processor._get_num_multimodal_tokens([(height, width)])["num_image_patches"][0]
        grid = internvl.image_grid(config, settings_, height, width, positions=256 * views)
    elif name == "idefics3":
        grid = idefics3.image_grid(config, settings_, height, width)
    else:
        grid = llava.image_grid(config, settings_, height, width, class_token=name == "llava-full")
    assert grid is not None
    return grid


@pytest.mark.parametrize(("size", "name", "count"), [(s, n, c) for s, row in COUNTS.items() for n, c in row.items()])
def test_positions_of_real_sizes(size, name, count):
    height, width = size
    inputs = lens(name).prepare(QUESTION, images=[Image.new("RGB", (width, height), (90, 50, 30))])
    grid = inputs.modality.image_grid()
    assert grid is not None and len(grid) == int(inputs.modality.mask("image").sum()) == count
    expected = image_grid(name, height, width)
    assert torch.equal(grid.boxes.nan_to_num(-1), expected.boxes.nan_to_num(-1))
    assert torch.equal(grid.view, expected.view) and torch.equal(grid.newline, expected.newline)


SIZES = st.tuples(st.integers(1, 2500), st.integers(1, 2500))


@pytest.mark.parametrize("name", ["llava-next", "internvl", "idefics3"])
@settings(max_examples=100, derandomize=True, deadline=None)
@given(SIZES)
def test_any_size_has_as_many_positions_as_the_processor_says(name, size):
    processor = lens(name).processor
    counted = processor._get_num_multimodal_tokens([size])
    if name == "llava-next":
        expected = counted["num_image_tokens"][0]
    else:
        expected = counted["num_image_patches"][0] * (256 if name == "internvl" else 169)
    assert len(image_grid(name, *size)) == expected


@pytest.mark.parametrize("name", BY_RULE)
@settings(max_examples=40, derandomize=True, deadline=None)
@given(SIZES)
def test_the_boxes_of_each_view_tile_it_without_gap_or_overlap(name, size):
    assert_tiles(image_grid(name, *size), without_place=int(name == "llava-full"))


@pytest.mark.parametrize("name", BY_RULE)
@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.tuples(st.integers(1, 900), st.integers(1, 900)), st.sampled_from(VIEWS))
def test_painting_keeps_a_constant_and_spreading_keeps_the_mass(name, size, view):
    assert_paints(image_grid(name, *size), view)


@pytest.mark.parametrize("name", ["llava-squeezed", "internvl", "idefics3"])
def test_a_squeezed_image_is_seen_whole_by_every_view(name):
    for size in [(480, 640), (901, 333)]:
        grid = image_grid(name, *size)
        for view in ("all", *grid.views):
            assert set(grid.to_pixels(torch.ones(len(grid)), view=view).unique().tolist()) == {1.0}


def test_llava_sees_the_middle_of_a_long_image_or_all_of_a_padded_one():
    cropped = image_grid("llava", 100, 300).boxes
    assert cropped[:, 0].min() == pytest.approx(100) and cropped[:, 2].max() == pytest.approx(200)
    padded = image_grid("llava-padded", 100, 300)
    assert padded.boxes[:, 2].max() == 300 and padded.boxes[:, 3].max() == 100
    assert int(padded.placed.sum()) == 24 * 8, "two thirds of the square are padding"


def processed(name: str, **options: Any) -> Any:
    picture = Image.new("RGB", (500, 300), (90, 50, 30))
    prompt = "<image>" + QUESTION
    return lens(name).processor(text=prompt, images=[picture], return_tensors="pt", **options), picture


@pytest.mark.parametrize("name", WITHOUT_SIZES)
def test_a_size_that_nobody_told_gives_no_grid_until_the_image_is_given(name):
    outputs, picture = processed(name)
    modality = lens(name).encode(outputs).modality
    assert not modality.grids
    if name != "idefics3":  # its several runs could be several images
        assert modality.image_grid() is None
    told = lens(name).encode(outputs, images=[picture])
    found = told.modality.image_grid()
    prepared = lens(name).prepare(QUESTION, images=[picture]).modality.image_grid()
    assert found is not None and prepared is not None
    assert torch.equal(found.boxes.nan_to_num(), prepared.boxes.nan_to_num())
    assert told.images == ((picture,),)


def test_other_settings_in_the_call_of_the_processor_are_noticed():
    outputs, picture = processed("internvl", crop_to_patches=False)
    grid = lens("internvl").encode(outputs, images=[picture]).modality.image_grid()
    assert grid is not None and grid.views == ("base",)
    outputs, picture = processed("internvl", max_patches=3)
    assert lens("internvl").encode(outputs, images=[picture]).modality.image_grid() is None
    outputs, picture = processed("idefics3", do_image_splitting=False)
    assert not lens("idefics3").encode(outputs, images=[picture]).modality.grids


def square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


LLAVA_SETTINGS: dict[str, tuple[type, dict[str, Any]]] = {
    "usual": (CLIPImageProcessor, {}),
    "scaled further than the crop": (CLIPImageProcessor, {"size": {"shortest_edge": 384}}),
    "squeezed, then cropped": (CLIPImageProcessor, {"size": square(384)}),
    "squeezed to another shape, then cropped": (CLIPImageProcessor, {"size": {"height": 336, "width": 448}}),
    "squeezed": (CLIPImageProcessor, {"size": square(336), "do_center_crop": False}),
    "padded": (LlavaImageProcessor, {"do_pad": True}),
    "padded, scaled to height and width": (LlavaImageProcessor, {"do_pad": True, "size": square(336)}),
    "padded, then cropped": (LlavaImageProcessor, {"do_pad": True, "size": {"shortest_edge": 384}}),
    "not padded": (LlavaImageProcessor, {}),
}


@pytest.mark.parametrize("name", LLAVA_SETTINGS)
@pytest.mark.parametrize("size", [(300, 500), (641, 333), (200, 700)])
def test_llava_boxes_are_where_its_processor_puts_the_pixels(name, size):
    """A picture whose colours are its own coordinates, run through the processor: the mean of each patch is the place
    that it sees."""
    height, width = size
    kind, options = LLAVA_SETTINGS[name]
    raw = {"do_rescale": False, "do_normalize": False, "image_mean": [0.0] * 3, "crop_size": square(336)}
    settings_ = kind(**{"size": {"shortest_edge": 336}, **raw, **options})
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = settings_([torch.stack([x, y, torch.ones_like(x)])], return_tensors="pt")["pixel_values"][0]
    seen = torch.nn.functional.avg_pool2d(pixels, 14).flatten(1).T
    grid = llava.image_grid(lens("llava").hf_model.config, settings_, height, width)
    assert grid is not None
    inside = seen[:, 2] > 0.999  # all of the patch is image
    middles = (grid.boxes[:, :2] + grid.boxes[:, 2:]) / 2
    apart = (middles - seen[:, :2])[inside].abs().amax(dim=0)
    patch = (grid.boxes[:, 2:] - grid.boxes[:, :2]).amax(dim=0)
    assert int(inside.sum()) > 20
    assert bool((apart < 0.1 * patch + 0.5).all())
    area = (grid.boxes[:, 2:] - grid.boxes[:, :2]).prod(dim=1)
    torch.testing.assert_close(area / area.max(), seen[:, 2].clamp(0, 1), atol=0.08, rtol=0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (CLIPImageProcessor, {"size": {"shortest_edge": 200}}),
        (CLIPImageProcessor, {"do_center_crop": False}),
        (CLIPImageProcessor, {"do_pad": True}),
        (CLIPImageProcessor, {"do_resize": False}),
        (CLIPImageProcessor, {"size": {"shortest_edge": 336, "longest_edge": 400}}),
        (CLIPImageProcessor, {"crop_size": square(224)}),
    ],
)
def test_settings_that_are_not_known_give_no_grid(kind, options):
    settings_ = kind(**{"size": {"shortest_edge": 336}, "crop_size": square(336), **options})
    assert llava.image_grid(lens("llava").hf_model.config, settings_, 300, 500) is None


def test_one_image_is_known_to_be_one_and_two_that_touch_are_not_taken_for_one(monkeypatch):
    monkeypatch.setattr("lensplug.families.FAMILIES", {})
    picture = Image.new("RGB", (500, 300), (90, 50, 30))
    one = lens("idefics3").prepare(QUESTION, images=[picture]).modality
    assert len(one.image_positions()) == 13 * 169 and one.image_grid() is None
    touching = lens("llava").prepare("<image><image>one", images=[picture, picture], chat_template=False).modality
    with pytest.raises(LensplugError, match="it is not known which image each belongs to"):
        touching.image_positions()
    apart = lens("llava").prepare("<image>one<image>", images=[picture, picture], chat_template=False).modality
    assert len(apart.image_positions(1)) == 576


def test_a_mixed_example_has_the_grid_of_its_own_image():
    video, picture = torch.zeros(2, 90, 160, 3, dtype=torch.uint8), Image.new("RGB", (80, 60))
    modality = lens("internvl").prepare(["one", "two"], images=[[picture], [picture]], videos=[[video], []]).modality
    assert list(modality.grids) == [(0, 0), (1, 0)] and list(modality.video_grids) == [(0, 0)]
    assert len(modality.image_positions(0, 0)) == len(modality.grids[0, 0]) == len(modality.grids[1, 0])


def test_a_batch_of_one_is_given_as_hugging_face_takes_it():
    outputs, picture = processed("llava")
    assert lens("llava").encode(outputs, images=[[picture]]).modality.image_grid() is not None


@pytest.mark.parametrize("name", ["llava-next", "llava-onevision"])
def test_a_grid_that_a_user_changes_is_not_that_of_the_next_image_of_its_size(name):
    before = image_grid(name, 480, 640)
    boxes, view, newline = before.boxes.clone(), before.view.clone(), before.newline.clone()
    before.boxes.zero_(), before.view.zero_(), before.newline.zero_()
    again = image_grid(name, 480, 640)
    assert torch.equal(again.boxes.nan_to_num(), boxes.nan_to_num())
    assert torch.equal(again.view, view) and torch.equal(again.newline, newline)
