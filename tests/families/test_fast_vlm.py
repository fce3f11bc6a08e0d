"""FastVLM: boxes of padded and cropped pictures, and encoders and settings of which nothing is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers as hf

from lensplug.families import ProcessedBatch
from lensplug.families.fast_vlm import image_grid, media_layout

VIEW = {"height": 256, "width": 256}


def test_a_padded_picture_has_boxes_where_its_pixels_are_in_the_view():
    """100 x 300 px: 85.3 of 256 rows are the picture's, from the 85th on."""
    settings = hf.LlavaImageProcessor(size={"shortest_edge": 256}, crop_size=VIEW, do_pad=True)
    grid = image_grid(settings, 256, 100, 300)
    assert grid is not None and len(grid) == 16
    scale = 300 / 256
    assert grid.boxes[:4, 0].tolist() == pytest.approx([0, 32.5 * scale, 96.5 * scale, 160.5 * scale])
    assert grid.boxes[:4, 2].tolist() == pytest.approx([32.5 * scale, 96.5 * scale, 160.5 * scale, 300])
    assert grid.boxes[::4, 1].tolist() == pytest.approx([0, 0, 96.5 * scale - 100, 160.5 * scale - 100])
    assert grid.placed.view(4, 4).all(dim=1).tolist() == [False, True, True, True]


def test_of_a_cropped_picture_the_middle_is_seen():
    settings = hf.CLIPImageProcessor(size={"shortest_edge": 256}, crop_size=VIEW)
    grid = image_grid(settings, 256, 512, 1024)
    assert grid is not None
    assert [*grid.boxes[:, :2].amin(dim=0).tolist(), *grid.boxes[:, 2:].amax(dim=0).tolist()] == [256, 0, 768, 512]
    assert grid.boxes[5].tolist() == [256 + 65, 65, 256 + 193, 193]


def test_other_settings_and_other_encoders_have_no_grid():
    assert image_grid(hf.CLIPImageProcessor(do_resize=False), 256, 512, 1024) is None
    outputs = {"pixel_values": torch.zeros(1, 3, 256, 256)}
    for architecture, known in (("fastvit_mci3", [[16]]), ("vit_tiny_patch16_224", None)):
        config = SimpleNamespace(
            model_type="fast_vlm", vision_config=hf.TimmWrapperConfig(architecture=architecture, hidden_size=64)
        )
        layout = media_layout(ProcessedBatch(config, outputs, {"image": [[16]]}))
        assert layout.lengths.get("image") == known and not layout.grids
