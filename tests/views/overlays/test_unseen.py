"""What no position sees of a picture is hatched, and nothing else is."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_families import lens

from lensplug import views
from lensplug.geometry import ImageGrid
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.views.overlays.unseen import NOTE, hatched

GREY = (120, 120, 120)


def shown(fig: object, picture: int = 0) -> np.ndarray:
    source = fig.layout.images[picture].source  # type: ignore[attr-defined]
    return np.asarray(Image.open(BytesIO(b64decode(source.partition(",")[2]))).convert("L")).astype(int)


def notes(fig: object) -> list[str]:
    return [note.text for note in fig.layout.annotations]  # type: ignore[attr-defined]


def overlay(name: str, picture: Image.Image) -> tuple[object, MultimodalInput]:
    inputs = lens(name).prepare("What is this ?", images=[picture])
    return views.image_overlay(torch.rand(inputs.tokens.shape[1]), inputs), inputs


def test_the_ends_of_a_long_picture_that_were_cropped_off_are_hatched():
    fig, inputs = overlay("vipllava", Image.new("RGB", (300, 100), GREY))
    grid = inputs.modality.image_grid()
    assert grid is not None
    seen = grid.boxes
    left, right = int(seen[:, 0].min()), int(seen[:, 2].max())
    assert 95 < left < 105 and 195 < right < 205
    gray = shown(fig)
    assert (np.abs(gray[:, left + 9 : right - 9] - 120) < 10).all()
    for end in (gray[:, : left - 9], gray[:, right + 9 :]):
        assert (end < 90).mean() > 0.4 and (end > 150).mean() > 0.1
    assert notes(fig) == [NOTE]


@pytest.mark.parametrize("name", ["paligemma", "janus", "qwen3-vl"])
def test_a_picture_that_is_seen_whole_is_shown_as_it_is(name):
    fig, _ = overlay(name, Image.new("RGB", (300, 100), GREY))
    assert (np.abs(shown(fig) - 120) < 10).all() and not notes(fig)


def test_cropped_frames_of_a_video_are_hatched():
    frames = np.full((2, 100, 300, 3), 120, np.uint8)
    inputs = lens("llava-next-video").prepare("What is this ?", videos=[frames])
    fig = views.video_overlay(torch.rand(inputs.tokens.shape[1]), inputs)
    assert notes(fig) == [NOTE]
    for frame in (0, 1):
        gray = shown(fig, frame)
        assert (gray[:, :90] > 150).any() and (np.abs(gray[:, 120:180] - 120) < 10).all()


def test_a_large_picture_is_hatched_in_the_size_in_which_it_is_shown():
    boxes = torch.tensor([[0.0, 0.0, 2000.0, 1000.0]])
    grid = ImageGrid(boxes, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.bool), 4000, 1000)
    made = hatched(Image.new("RGB", (4000, 1000), GREY), grid)
    assert made.size == (720, 180)
    gray = np.asarray(made.convert("L")).astype(int)
    assert (gray[:, :360] == 120).all() and (gray[:, 360:] != 120).all()
