"""The tiles of the large PerceptionLM, by its own processor's count; and what its processor refuses."""

from __future__ import annotations

import random

import pytest
import torch
import transformers as hf
from PIL import Image
from support.image_families import lens

from lensplug.errors import LensplugError
from lensplug.families.perception_lm import image_grid

QUESTION = "What is this ?"


def test_up_to_36_tiles_of_448_px_are_as_many_as_its_processor_cuts():
    """Each picture is cut for real, in the size that is published; its first view is all of it."""
    settings, rng = hf.PerceptionLMImageProcessor(), random.Random(0)
    sizes = [(1, 4000), (4000, 1), (448, 448), (1080, 1920)]
    sizes += [(rng.randint(1, 2000), rng.randint(1, 2000)) for _ in range(6)]
    for height, width in sizes:
        pixels = settings([Image.new("RGB", (width, height))], return_tensors="pt")["pixel_values"]
        grid = image_grid(settings, 28, height, width)
        assert grid is not None and len(grid) == 256 * pixels.shape[1]
        assert grid.view.tolist() == torch.arange(pixels.shape[1]).repeat_interleave(256).tolist()
        first = grid.boxes[:256]
        assert [*first[:, :2].amin(dim=0), *first[:, 2:].amax(dim=0)] == [0, 0, width, height]


@pytest.mark.parametrize(("height", "width"), [(60, 224), (200, 90), (130, 130)])
def test_each_tile_is_the_part_of_the_picture_that_its_boxes_say(height, width):
    """A picture whose colours tell the row and the column of each of its pixels."""
    settings = hf.PerceptionLMImageProcessor(tile_size=112, max_num_tiles=4, do_normalize=False, do_rescale=False)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    told = torch.stack([y, x, x]).to(torch.uint8)
    tiles = settings([told], return_tensors="pt")["pixel_values"][0].float()
    grid = image_grid(settings, 28, height, width)
    assert grid is not None and len(grid) == 16 * len(tiles)
    cells = tiles.unflatten(-1, (4, 28)).unflatten(-3, (4, 28)).mean(dim=(-3, -1))  # [view, colour, row, column]
    middle = ((grid.boxes[:, :2] + grid.boxes[:, 2:]) / 2 - 0.5).view(len(tiles), 4, 4, 2)
    assert torch.allclose(cells[:, 0], middle[..., 1], atol=1.5)
    assert torch.allclose(cells[:, 1], middle[..., 0], atol=1.5)


def test_pictures_of_different_numbers_of_tiles_are_refused_by_its_processor():
    pictures = [Image.new("RGB", size) for size in ((100, 100), (200, 100))]
    with pytest.raises(LensplugError, match="PerceptionLMProcessor refused its inputs"):
        lens("perception-lm").prepare(QUESTION, images=pictures)


def test_settings_that_leave_pixels_without_a_position_have_no_grid():
    assert image_grid(hf.PerceptionLMImageProcessor(tile_size=450), 28, 300, 200) is None
    assert image_grid(hf.PerceptionLMImageProcessor(do_resize=False), 28, 300, 200) is None
