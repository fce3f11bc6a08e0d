"""Places of an edit: what a region, a time and words mean, against geometry and text."""

from __future__ import annotations

import random

import pytest
import torch

import lensplug
from lensplug import LensplugError
from lensplug.interventions import Knockout, Region, Seconds, Words
from lensplug.interventions.places import RunPositions
from lensplug.tiny.voices import make_voice


@pytest.fixture(scope="module")
def spoken():
    listener = lensplug.tiny.audio_llama()
    voice = make_voice(random.Random(4), emotion="happy")
    return listener.prepare(voice.prompt("sound"), audio=[voice.audio])


def placed(inputs, place):
    return RunPositions.of(inputs).place(place, "from_").mask


def test_a_region_is_in_every_view(inputs):
    grid, positions = inputs.modality.image_grid(), inputs.modality.image_positions()
    mask = placed(inputs, Region((0, 0, 24, 48)))[0]
    inside = positions[grid.overlap((0, 0, 24, 48)) > 0]
    assert mask.nonzero()[:, 0].tolist() == inside.tolist()
    assert 0 < int(mask.sum()) < len(positions) and len(set(grid.view[mask[positions]].tolist())) > 1
    more = placed(inputs, Region((0, 0, 24, 48), at_least=0.9))[0]
    assert bool((mask | ~more).all()) and 0 < int(more.sum()) <= int(mask.sum())


def test_seconds_are_what_hears_them(spoken):
    timeline, positions = spoken.modality.audio_timeline(), spoken.modality.audio_positions()
    mask = placed(spoken, Seconds(0.5, 1.0))[0]
    heard = [int(p) for p, a, b in zip(positions, timeline.start_s, timeline.end_s, strict=True) if a < 1.0 and b > 0.5]
    assert mask.nonzero()[:, 0].tolist() == heard and 0 < len(heard) < len(positions)


def test_words_are_where_they_are_written(inputs):
    mask = placed(inputs, Words("the color?"))[0]
    text = "".join(inputs.str_tokens[0][position] for position in mask.nonzero()[:, 0].tolist())
    assert "".join(text.split()) == "thecolor?"


def test_names_positions_and_masks(batch):
    assert torch.equal(placed(batch[0:2], "image"), batch[0:2].modality.mask("image"))
    assert torch.equal(placed(batch, "all"), batch.attention_mask.bool())
    assert placed(batch, "last")[:, -1].all() and int(placed(batch, "last").sum()) == 3
    assert torch.equal(placed(batch, -1), placed(batch, "last"))
    assert placed(batch, [-1, -2]).sum(1).tolist() == [2, 2, 2]
    mask = batch.attention_mask.bool() & (torch.arange(batch.shape[1]) > 100)
    assert torch.equal(placed(batch, mask), mask)
    assert torch.equal(placed(batch[0:2], ("image", "text")), batch[0:2].attention_mask.bool())


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("image", "means no position of example 2. the edit would change nothing. It has"),
        (Words("the sound"), "means no position of example 0"),
        (Region((0, 0, 1, 1), image=1), "has no image 1"),
        (Seconds(0, 1), "has no audio 0"),
        ("middle", "expected one of"),
    ],
)
def test_what_is_not_there(batch, place, message):
    with pytest.raises(LensplugError, match=message):
        placed(batch, place)


def test_embeddings_and_tokens_have_positions_but_no_modalities(lens, inputs):
    with torch.no_grad(), lens.intervene(Knockout(from_=[3], to="last")):
        a, b = lens.model(inputs), lens.model(inputs.embeds)
    assert torch.equal(a, b)
    with lens.intervene(Knockout(from_="image", to="last")), pytest.raises(LensplugError, match="nothing says which"):
        lens.model(inputs.embeds)
