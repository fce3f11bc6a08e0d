"""Places that are measured are those that families' own files say; and a measurement says how far it can be trusted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_families import lens as narrow_lens
from torch import Tensor

from lensplug import tiny, views
from lensplug.errors import LensplugError
from lensplug.geometry import AudioTimeline, ImageGrid, VideoGrid
from lensplug.hf.encoder_attention import own_positions_only
from lensplug.locating.changed_media import axes_of
from lensplug.locating.intervals import intervals_of
from lensplug.locating.measured_grids import in_rows_and_columns, views_of
from lensplug.media import Sound

QUESTION = "What is the color?"


def picture(height: int, width: int) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def image_lens():
    return tiny.llava_onevision()


def test_a_trained_model_seen_in_base_view_and_tiles_is_located_as_its_file_says(image_lens):
    located = image_lens.locate(image_lens.prepare(QUESTION, images=[picture(90, 120)]))
    known, found = located.known, located.geometry
    assert isinstance(known, ImageGrid) and isinstance(found, ImageGrid)
    assert located.agreement is not None
    assert torch.equal(located.placed, known.placed)  # newlines have no place
    assert float(located.agreement[known.placed].min()) > 0.5
    assert torch.equal((found.view > 0)[known.placed], (known.view > 0)[known.placed])
    assert located.attention_off
    assert float(located.concentration.nanmean()) > 0.95
    assert 0.2 < float(located.blur.nanmean()) < 0.8  # its tower's attention spreads a colour over all patches
    assert located.inputs.modality.image_grid() is found
    assert len(located.to_dataframe()) == len(known)
    assert "measured" in str(located)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "gemma3", "mistral3"])
def test_other_ways_to_cut_a_picture_are_found(name):
    wrapped = narrow_lens(name)
    located = wrapped.locate(wrapped.prepare("What is this ?", images=[picture(160, 200)]), stripes=24)
    assert isinstance(located.known, ImageGrid) and located.agreement is not None
    assert torch.equal(located.placed, located.known.placed)
    assert float(located.agreement[located.placed].min()) > 0.5


def test_the_second_picture_of_the_second_prompt(image_lens):
    inputs = image_lens.prepare([QUESTION, QUESTION], images=[[picture(60, 60)], [picture(60, 60), picture(60, 100)]])
    located = image_lens.locate(inputs, media_index=1, example=1, stripes=24)
    assert (located.geometry.height, located.geometry.width) == (60, 100)
    assert float(located.agreement[located.placed].min()) > 0.4
    changed = located.inputs.modality.grids
    assert changed[1, 1].measured is not None and changed[0, 0].measured is None
    with pytest.raises(LensplugError, match="no image 3"):
        image_lens.locate(inputs, media_index=3, example=1)


def test_frames_and_places_of_a_video(image_lens):
    frames = np.random.default_rng(1).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    located = image_lens.locate(image_lens.prepare(QUESTION, videos=[frames]), stripes=24)
    known, found = located.known, located.geometry
    assert isinstance(known, VideoGrid) and isinstance(found, VideoGrid)
    assert located.agreement is not None
    assert torch.equal(found.frame, known.frame)
    assert float(located.agreement[located.placed].min()) > 0.5
    figure = views.video_overlay(torch.rand(located.inputs.tokens.shape[1]), located.inputs)
    assert "places measured by lens.locate" in figure.layout.title.text


def test_seconds_of_a_sound():
    lens = tiny.audio_llama()
    waveform = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.05, 0.3, 16000)
    located = lens.locate(lens.prepare("How does the speaker sound?", audio=[(waveform, 16000)]))
    known, found = located.known, located.geometry
    assert isinstance(known, AudioTimeline) and isinstance(found, AudioTimeline)
    assert located.agreement is not None
    # Its convolutions hear neighbours too: the middles are the same to a tenth of the sound.
    assert float((found.center_s - known.center_s).abs().max()) < 0.1
    assert float(located.agreement.mean()) > 0.8
    assert (
        "places measured"
        in views.sound_overlay(torch.rand(located.inputs.tokens.shape[1]), located.inputs).layout.title.text
    )


def test_a_resamplers_positions_have_no_place(image_lens, monkeypatch):
    """A projector that gives every position the mean over all patches: as a Q-Former's queries see all of them."""
    projector = image_lens.hf_model.model.multi_modal_projector
    own = projector.forward

    def mixed(features: Tensor) -> Tensor:
        return own(features).mean(dim=(0, 1), keepdim=True).expand(*features.shape[:2], -1)

    monkeypatch.setattr(projector, "forward", mixed)
    with pytest.raises(LensplugError, match="have no one place: what moves them comes from all over"):
        image_lens.locate(image_lens.prepare(QUESTION, images=[picture(60, 60)]), stripes=16)


def test_refusals(image_lens):
    inputs = image_lens.prepare(QUESTION, images=[picture(60, 60)])
    with pytest.raises(LensplugError, match="has no image, video or sound"):
        image_lens.locate(image_lens.prepare(QUESTION))
    with pytest.raises(LensplugError, match="is not known: lens.prepare keeps it"):
        image_lens.locate(image_lens.encode(inputs.model_inputs))
    with pytest.raises(LensplugError, match="stripes is 1, expected at least 2"):
        image_lens.locate(inputs, stripes=1)


def test_encoders_are_as_before_behind_the_scope(image_lens):
    inputs = image_lens.prepare(QUESTION, images=[picture(60, 60)])
    again = lambda: image_lens.with_media(inputs, images=[list(inputs.images[0])]).embeds  # noqa: E731
    with pytest.raises(ZeroDivisionError), own_positions_only(image_lens.hf_model, image_lens.core):
        assert float((again() - inputs.embeds).abs().max()) > 0.01
        raise ZeroDivisionError
    assert torch.equal(again(), inputs.embeds)


def test_an_interval_by_hand():
    """Four parts of 10: the second is seen wholly, half of the third, nothing of the others."""
    edges = torch.arange(6) * 10.0
    moved = torch.tensor([[0.0, 2.0, 2.0, 2.0**0.5, 0.0], [0.0, 0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    found = intervals_of(moved, edges)
    torch.testing.assert_close(found.start, torch.tensor([10.0, 20.0, torch.nan]), equal_nan=True)
    torch.testing.assert_close(found.stop, torch.tensor([35.0, 30.0, torch.nan]), equal_nan=True)


def boxes_of(rows: int, columns: int, height: float, width: float) -> Tensor:
    return torch.tensor(
        [
            [c * width / columns, r * height / rows, (c + 1) * width / columns, (r + 1) * height / rows]
            for r in range(rows)
            for c in range(columns)
        ]
    )


@pytest.mark.parametrize("base_first", [True, False])
def test_views_and_rows_by_hand(base_first):
    base, tiles = boxes_of(2, 2, 80, 80), boxes_of(4, 4, 80, 80)
    whole = torch.cat([base, tiles] if base_first else [tiles, base])
    expected = torch.tensor([0] * 4 + [1] * 16 if base_first else [1] * 16 + [0] * 4)
    noisy = whole + torch.rand(whole.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    view = views_of(noisy)
    assert torch.equal(view, expected)
    aligned = in_rows_and_columns(noisy, view, (2.0, 2.0))
    assert float((aligned - whole).abs().max()) < 1
    rows = aligned[view == 1].reshape(4, 4, 4)
    assert torch.equal(rows[:, 0, 1], rows[:, 3, 1]) and torch.equal(rows[:-1, :, 3], rows[1:, :, 1])


def test_each_part_changes_and_nothing_else():
    image = Image.new("RGB", (20, 10), (128, 128, 128))
    y, x = axes_of(image, 5)
    before, after = np.asarray(image).astype(int), np.asarray(y.changed(1)).astype(int)
    rows = np.nonzero((before != after).any(axis=(1, 2)))[0]
    assert rows.tolist() == [2, 3] and len(x) == 5 and x.resolution == 4
    (time,) = axes_of(Sound(torch.zeros(100), 100), 4)
    moved = (time.changed(3).waveform != 0).nonzero()[:, 0]
    assert moved.tolist() == list(range(75, 100)) and time.resolution == 0.25
