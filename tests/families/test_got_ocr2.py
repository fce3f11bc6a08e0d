"""GOT-OCR 2: how far its convolutions see beyond the cell of a position, and where the middle of it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.further_image_families import got_ocr2
from support.image_families import lens

from lensplug.errors import LensplugError
from lensplug.families.got_ocr2 import image_grid

QUESTION = "What is this ?"
PATCH = 16


def test_a_position_sees_four_patches_to_each_side_of_its_middle_and_no_further():
    """The convolutions are random here; the picture has the size of the view, so that nothing is scaled."""
    model, processor = got_ocr2()
    for layer in model.model.vision_tower.layers:
        torch.nn.init.zeros_(layer.attn.proj.weight)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    patches = torch.arange(16)
    pictures = [noise]
    for patch in patches:
        pictures.append(noise.copy())
        pictures[-1][:, patch * PATCH : (patch + 1) * PATCH] ^= 255
    with torch.no_grad():
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        features = model.eval().model.get_image_features(pixels).pooler_output.unflatten(1, (4, 4))
    moved = (features[1:] - features[:1]).abs().amax(dim=(1, 3)) > 0  # [patch column]
    assert torch.equal(moved, (patches[:, None] - 4 * torch.arange(4)).abs() <= 4)
    grid = image_grid(model.config, processor.image_processor, 256, 256)
    assert grid is not None
    middle = (4 * torch.arange(1, 3) + 0.5) * PATCH
    assert torch.equal(grid.boxes[1:3, [0, 2]].mean(dim=1), middle)
    assert grid.boxes[[0, 3]][:, [0, 2]].tolist() == [[0, 40], [168, 256]]


def test_settings_that_do_not_squeeze_have_no_grid_and_words_alone_are_refused_by_its_processor():
    model, processor = got_ocr2()
    processor.image_processor.do_resize = False
    assert image_grid(model.config, processor.image_processor, 256, 256) is None
    with pytest.raises(LensplugError, match="refused its inputs: You must provide valid `images`"):
        lens("got-ocr2").prepare(QUESTION)
