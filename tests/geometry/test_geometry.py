"""ImageGrid: boxes that tile the image, and values painted over it, against counting pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaOnevisionConfig, LlavaOnevisionImageProcessor, SiglipVisionConfig

from lensplug.errors import LensplugError
from lensplug.families.llava_onevision import image_grid
from lensplug.geometry import AudioTimeline, ImageGrid

NAN = [math.nan] * 4
VIEW, PATCH = 384, 14


@pytest.fixture(scope="module")
def config() -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(image_size=VIEW, patch_size=PATCH),
        image_grid_pinpoints=LlavaOnevisionImageProcessor.image_grid_pinpoints,
        vision_aspect_ratio="anyres_max_9",
    )


@pytest.fixture
def grid() -> ImageGrid:
    """An image of 4 x 3 pixels: a base view of two halves, the last row unseen; one tile over the right, a newline."""
    boxes = torch.tensor([[0, 0, 2, 2], [2, 0, 4, 2], [2, 0, 4, 3], NAN])
    return ImageGrid(boxes, torch.tensor([0, 0, 1, 1]), torch.tensor([False, False, False, True]), width=4, height=3)


def test_values_are_painted_as_by_hand(grid):
    values = torch.tensor([1.0, 2.0, 4.0, 100.0])
    assert grid.to_pixels(values, view="base").tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0]]
    assert grid.to_pixels(values, view="tiles").tolist() == [[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]]
    assert grid.to_pixels(values).tolist() == [[1, 1, 3, 3], [1, 1, 3, 3], [0, 0, 4, 4]]
    assert len(grid) == 4


def test_the_mass_of_each_view_is_one_call(grid):
    assert grid.mass_by_view(torch.tensor([1.0, 2.0, 4.0, 100.0])) == {"base": 3, "tiles": 4, "no place": 100}
    assert grid.mass_by_view(torch.tensor([1.0, math.nan, 4.0, 0.0])) == {"base": 1, "tiles": 4, "no place": 0}
    with pytest.raises(LensplugError, match=r"\[3\] values for 4 image tokens"):
        grid.mass_by_view(torch.ones(3))


def test_half_precision_is_painted_as_floats(grid):
    assert torch.equal(
        grid.to_pixels(torch.tensor([1.0, 2.0, 4.0, 0.0]).bfloat16()),
        grid.to_pixels(torch.tensor([1.0, 2.0, 4.0, 0.0])),
    )


def test_a_box_between_pixels_paints_the_pixels_whose_centre_it_holds():
    boxes = torch.tensor([[0.0, 0, 1.4, 1], [1.4, 0, 2.5, 1], [2.5, 0, 2.6, 1]])
    grid = ImageGrid(boxes, torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.bool), width=4, height=1)
    assert grid.to_pixels(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[1, 2, 3, 0]]


@pytest.mark.parametrize("view", ["all", "base", "tiles"])
@pytest.mark.parametrize("size", [(300, 500), (37, 290)])
def test_cells_are_the_picture_without_its_pixels(config, size, view):
    height, width = size
    grid = image_grid(config, height, width)
    values = torch.rand(len(grid), generator=torch.Generator().manual_seed(0))
    cells, y, x = grid.to_cells(values, view=view)
    assert (float(y[0]), float(y[-1]), float(x[0]), float(x[-1])) == (0, height, 0, width)
    assert bool((y[1:] > y[:-1]).all() and (x[1:] > x[:-1]).all())
    rows = torch.searchsorted(y, torch.arange(height) + 0.5, right=True) - 1
    columns = torch.searchsorted(x, torch.arange(width) + 0.5, right=True) - 1
    again = cells[rows][:, columns].nan_to_num(0)
    assert torch.equal(again, grid.to_pixels(values, view=view))
    assert cells.numel() < 130**2, "whatever the size of the image"


def test_a_value_that_is_not_known_is_left_out(grid):
    values = torch.tensor([1.0, torch.nan, 4.0, torch.nan])
    assert grid.to_pixels(values).tolist() == [[1, 1, 4, 4], [1, 1, 4, 4], [0, 0, 4, 4]]
    assert float(grid.to_pixels(values, preserve_mass=True).sum()) == 5


@pytest.mark.parametrize("values", [torch.ones(3), torch.ones(5)])
def test_another_number_of_values_is_refused(grid, values):
    with pytest.raises(LensplugError, match=f"\\[{len(values)}\\] values for 4 image tokens: give one value a token"):
        grid.to_pixels(values)


def test_an_unknown_view_is_refused(grid):
    with pytest.raises(LensplugError, match="'tile', expected 'all', 'base' or 'tiles'"):
        grid.to_pixels(torch.ones(4), view="tile")


def test_spread_values_keep_their_sum_as_by_hand(grid):
    values = torch.tensor([1.0, 2.0, 6.0, 100.0])
    base = [[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5], [0, 0, 0, 0]]
    assert grid.to_pixels(values, view="base", preserve_mass=True).tolist() == base
    assert grid.to_pixels(values, view="tiles", preserve_mass=True).tolist() == [[0, 0, 1, 1]] * 3
    assert float(grid.to_pixels(values, preserve_mass=True).sum()) == 9
    assert grid.placed.tolist() == [True, True, True, False] and grid.views == ("base", "tiles")


def test_a_value_is_spread_over_parts_of_pixels():
    boxes = torch.tensor([[0.5, 0, 1.25, 1], [1.25, 0, 2.0, 1]])
    grid = ImageGrid(boxes, torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.bool), width=3, height=1)
    spread = grid.to_pixels(torch.tensor([3.0, 3.0]), preserve_mass=True)
    torch.testing.assert_close(spread, torch.tensor([[2.0, 4.0, 0.0]]))


def test_the_way_back_as_by_hand(grid):
    assert grid.overlap([1, 0, 3, 1]).tolist() == [0.25, 0.25, pytest.approx(1 / 6), 0]
    assert grid.overlap([1, 0, 3, 1], view="base").tolist() == [0.25, 0.25, 0, 0]
    assert grid.overlap((0.5, 0.5, 1.5, 1.5)).tolist() == [0.25, 0, 0, 0]
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, 1:3] = True
    assert grid.overlap(mask).tolist() == [0.25, 0.25, pytest.approx(1 / 6), 0]
    mask[2, 0] = True  # seen by nothing
    assert grid.overlap(mask).tolist() == [0.25, 0.25, pytest.approx(1 / 6), 0]


def test_a_region_in_any_form(grid):
    by_hand = [0.25, 0.25, pytest.approx(1 / 6), 0]
    for box in ((1, 0, 3, 1), np.array([1.0, 0, 3, 1]), torch.tensor([1.0, 0, 3, 1]), torch.tensor([1, 0, 3, 1])):
        assert grid.overlap(box).tolist() == by_hand
    mask = np.zeros((3, 4), np.uint8)
    mask[0, 1:3] = 255
    for form in (mask, mask > 0, mask.tolist(), torch.from_numpy(mask), mask / 255):
        assert grid.overlap(form).tolist() == by_hand


def test_an_infinite_value_stays_in_its_box(grid):
    values = torch.tensor([-torch.inf, 2.0, 4.0, 0.0])
    assert grid.to_pixels(values, view="base").tolist() == [[-torch.inf] * 2 + [2, 2]] * 2 + [[0, 0, 0, 0]]
    cells, _, _ = grid.to_cells(values, view="base")
    assert bool(cells[0].isneginf().any()) and float(cells.nan_to_num(0).max()) == 2
    with pytest.raises(LensplugError, match="some values are infinite"):
        grid.to_pixels(values, preserve_mass=True)


@pytest.mark.parametrize("size", [(300, 500), (37, 290)])
def test_a_box_and_its_mask_are_seen_by_the_same_positions(config, size):
    height, width = size
    grid = image_grid(config, height, width)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[5:30, 40:200] = True
    torch.testing.assert_close(grid.overlap(mask), grid.overlap([40, 5, 200, 30]), atol=1e-5, rtol=0)
    for token in (0, 100, len(grid) - 2):
        box = grid.boxes[token].tolist()
        assert float(grid.overlap(box)[token]) == pytest.approx(1)
        others = (grid.overlap(box) > 1e-4) & ((grid.view == 0) == (grid.view[token] == 0))
        assert others.nonzero().flatten().tolist() == [token]


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ([3, 0, 3, 2], r"the box \[3, 0, 3, 2\] has no area"),
        ([0, 2, 4, 1], "has no area"),
        ([0, 2, 4], r"the region has the shape \[3\], expected a box"),
        (
            torch.ones(4, 3, dtype=torch.bool),
            r"the region has the shape \[4, 3\], expected a box x0 y0 x1 y1, or a mask of the shape \[3, 4\]",
        ),
    ],
)
def test_a_region_that_is_none_is_refused(grid, region, message):
    with pytest.raises(LensplugError, match=message):
        grid.overlap(region)


SIZES = st.tuples(st.integers(1, 2500), st.integers(1, 2500))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(SIZES)
def test_boxes_lie_inside_the_image_and_newlines_have_none(config, size):
    height, width = size
    grid = image_grid(config, height, width)
    assert torch.equal(grid.boxes.isnan().all(dim=1), grid.newline)
    assert torch.equal(grid.boxes.isnan().any(dim=1), grid.newline)
    boxes = grid.boxes[~grid.newline]
    assert bool((boxes[:, :2] <= boxes[:, 2:]).all()) and float(boxes.min()) >= 0
    assert bool((boxes[:, 2:] <= torch.tensor([width, height])).all())


@settings(max_examples=60, derandomize=True, deadline=None)
@given(SIZES, st.booleans())
def test_the_base_view_tiles_the_image_up_to_the_border_that_no_patch_sees(config, size, alone):
    height, width = size
    boxes = image_grid(config, height, width, alone=alone).boxes[: (VIEW // PATCH) ** 2].double().numpy()
    x0, y0, x1, y1 = boxes.reshape(VIEW // PATCH, VIEW // PATCH, 4).transpose(2, 0, 1)
    assert (x0 == x0[0]).all() and (x1 == x1[0]).all() and (y0 == y0[:, :1]).all() and (y1 == y1[:, :1]).all()
    assert (x0[0, 1:] == x1[0, :-1]).all() and (y0[1:, 0] == y1[:-1, 0]).all()  # neither gap nor overlap
    assert x0[0, 0] == 0 and y0[0, 0] == 0
    seen = VIEW // PATCH * PATCH / VIEW
    square = max(size)
    right = seen * width if alone else min(seen * square - (square - width) // 2, width)
    bottom = seen * height if alone else min(seen * square - (square - height) // 2, height)
    np.testing.assert_allclose([x1[0, -1], y1[-1, 0]], [right, bottom], rtol=1e-6)


@pytest.mark.parametrize("size", [(384, 384), (480, 640), (1080, 1920), (2304, 2304), (150, 900)])
def test_tiles_meet_and_leave_out_only_what_no_patch_sees(config, size):
    height, width = size
    grid = image_grid(config, height, width)
    of_tiles = grid.boxes[(grid.view > 0) & ~grid.newline].double().numpy()
    for axis, length in ((0, width), (1, height)):
        edges = np.unique(of_tiles[:, [axis, axis + 2]], axis=0)
        edges = edges[edges[:, 0] < edges[:, 1]]
        gaps = edges[1:, 0] - edges[:-1, 1]
        patch = np.median(edges[:, 1] - edges[:, 0])
        assert (gaps >= 0).all() and gaps.max(initial=0) <= patch * (VIEW % PATCH) / PATCH * (1 + 1e-6)
        n_tiles = int(grid.view.max())
        assert (gaps > 0).sum() <= n_tiles  # at seams only, never within a tile
        assert edges[0, 0] <= patch and length - edges[-1, 1] <= 2 * patch


@pytest.mark.parametrize("size", [(384, 384), (300, 500), (500, 120), (37, 290)])
@pytest.mark.parametrize("view", ["all", "base", "tiles"])
def test_painting_equals_asking_each_pixel_for_its_box(config, size, view):
    height, width = size
    grid = image_grid(config, height, width)
    values = torch.rand(len(grid), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    total, covers = np.zeros((height, width)), np.zeros((height, width))
    for chosen in [c for c, n in ((grid.view == 0, "base"), (grid.view > 0, "tiles")) if view in ("all", n)]:
        for box, value in zip(grid.boxes[chosen].double().numpy(), values[chosen].tolist(), strict=True):
            inside = ((x >= box[0]) & (x < box[2]))[None] & ((y >= box[1]) & (y < box[3]))[:, None]
            total[inside] += value
            covers[inside] += 1
    assert covers.max() == (2 if view == "all" else 1)  # a view covers a pixel once
    painted = grid.to_pixels(values.float(), view=view)
    np.testing.assert_allclose(painted.numpy(), total / np.maximum(covers, 1), atol=1e-6)
    constant = grid.to_pixels(torch.full((len(grid),), 0.7), view=view).numpy()
    np.testing.assert_allclose(constant, np.where(covers > 0, np.float32(0.7), 0), atol=1e-6)


def timeline(starts, ends, duration):
    return AudioTimeline(torch.tensor(starts), torch.tensor(ends), duration)


def test_timeline_by_hand():
    line = timeline([0.0, 1.0, 2.0], [0.5, 2.0, 3.0], 2.0)
    assert len(line) == 3
    assert line.center_s.tolist() == [0.25, 1.5, 2.5]
    assert line.padding.tolist() == [False, False, True]
    assert line.edges_s.tolist() == [0.0, 0.875, 2.0, 3.0]
    painted = line.to_seconds(torch.tensor([1.0, 2.0, 3.0]), bins=4)  # middles at 0.25, 0.75, 1.25, 1.75 s
    assert painted.tolist() == [1.0, 1.0, 2.0, 2.0]


def test_painting_a_constant_is_constant_and_one_position_fills_the_sound():
    line = timeline([0.0, 0.4, 0.9], [0.1, 0.5, 1.0], 1.0)
    assert set(line.to_seconds(torch.full((3,), 0.5), bins=97).tolist()) == {0.5}
    assert timeline([0.2], [0.4], 1.0).to_seconds(torch.tensor([7.0]), bins=5).tolist() == [7.0] * 5


def test_the_middle_of_a_bin_on_an_edge_counts_to_what_follows():
    line = timeline([0.0, 0.5], [0.5, 1.0], 1.0)
    assert line.to_seconds(torch.tensor([1.0, 2.0]), bins=1).tolist() == [2.0]


def test_timeline_refuses_values_of_another_number():
    with pytest.raises(LensplugError, match=r"\[2\] values for 1 audio tokens"):
        timeline([0.2], [0.4], 1.0).to_seconds(torch.zeros(2), bins=5)
