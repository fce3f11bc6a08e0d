"""One prompt with other media, against the same prompt prepared with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import image_families
from support.audio_relatives import RELATIVES, relative
from support.models import largest_difference, scene

import lensplug
from lensplug import LensplugError
from lensplug.hf.prompts import as_the_model_reads
from lensplug.inputs.other_media import _types
from lensplug.tiny.voices import SAMPLING_RATE

QUESTION = "What is the color? Answer single word."
FAMILIES = ["llava", "llava-next", "llava-onevision", "internvl", "idefics3"]


@pytest.mark.parametrize("name", FAMILIES)
def test_other_pictures_in_every_family(name):
    """A wide picture, of which families that cut tiles make several; alone, and behind an answer."""
    lens = image_families.lens(name)
    pictures = [scene(90, 60, seed) for seed in range(3)]
    template = getattr(lens.processor, "chat_template", None) is not None
    text = as_the_model_reads(lens.processor, QUESTION, images=pictures[:1], videos=None, audio=None)

    def prepare(picture):
        return lens.prepare(text, images=[picture], chat_template=template)

    inputs = prepare(pictures[0])
    variants = lens.with_media(inputs, images=[[picture] for picture in pictures])
    expected = torch.cat([prepare(picture).embeds for picture in pictures])
    assert largest_difference(variants.embeds, expected) <= 1e-4 * float(expected.abs().max())
    assert largest_difference(variants.embeds[1], variants.embeds[0]) > 0.01
    assert torch.equal(variants.attention_mask, inputs.attention_mask.expand(3, -1))


@pytest.mark.parametrize("name", sorted(RELATIVES))
def test_other_sounds_in_every_family(name):
    lens = lensplug.wrap(*relative(name), check=False)
    rate = lens.processor.feature_extractor.sampling_rate
    generator = np.random.default_rng(0)
    sounds = [(0.2 * generator.standard_normal(rate).astype(np.float32), rate) for _ in range(2)]
    inputs = lens.prepare("What is it?", audio=[sounds[0]])
    variants = lens.with_media(inputs, audio=[[sound] for sound in sounds])
    expected = torch.cat([lens.prepare("What is it?", audio=[sound]).embeds for sound in sounds])
    assert largest_difference(variants.embeds, expected) <= 1e-4 * float(expected.abs().max())
    assert largest_difference(variants.embeds[1], variants.embeds[0]) > 0.01


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


def test_behind_an_answer_in_a_padded_batch(lens):
    """The second example of a batch with answers: its tokens, its padding."""
    pictures = [scene(48, 48, 1), scene(96, 48, 2), scene(48, 48, 3)]
    batch = lens.prepare([QUESTION] * 2, images=[pictures[1:2], pictures[:1]], answer=["Red", "Blue square"])
    other = lens.prepare([QUESTION] * 2, images=[pictures[1:2], pictures[2:]], answer=["Red", "Blue square"])
    variant = lens.with_media(batch[1:2], images=[[pictures[2]]])
    attended = other.attention_mask[1].bool()
    assert not bool(attended.all())
    assert largest_difference(variant.embeds[0][attended], other.embeds[1][attended]) <= 1e-5
    rows = torch.tensor([[batch.shape[1] - 2]])
    expected = lens.logits_at(other[1:2], rows)
    assert largest_difference(lens.logits_at(variant, rows), expected) <= 1e-4 * float(expected.abs().max())


def test_a_sound_of_another_rate_is_resampled_without_a_word(recwarn):
    """The warning came when the inputs were made."""
    hears = lensplug.tiny.audio_llama()
    waveform = 0.1 * np.random.default_rng(1).standard_normal(SAMPLING_RATE * 4).astype(np.float32)
    with pytest.warns(lensplug.LensplugWarning, match="resampled"):
        inputs = hears.prepare("How does the speaker sound?", audio=[(waveform, 2 * SAMPLING_RATE)])
    recwarn.clear()
    again = hears.with_media(inputs, audio=[list(inputs.audio[0])])
    assert not recwarn.list
    assert largest_difference(again.embeds, inputs.embeds) <= 1e-5


def test_token_types_follow_the_placeholders():
    """Gemma 3 and Qwen2-VL: 1 at their images, 2 at their videos, 0 elsewhere, also in an answer."""
    of_tokens, types = torch.tensor([[5, 7, 7, 8]]), torch.tensor([[0, 1, 1, 2]])
    tokens = torch.tensor([[4, 7, 7, 3, 8, 2]])
    assert _types(types, of_tokens, tokens, (7, 8, 9)).tolist() == [[0, 1, 1, 0, 2, 0]]


def test_refusals(lens):
    picture = scene(48, 48, 1)
    inputs = lens.prepare(QUESTION, images=[picture])
    with pytest.raises(LensplugError, match="images=, videos= or audio="):
        lens.with_media(inputs)
    with pytest.raises(LensplugError, match="at least one"):
        lens.with_media(inputs, images=[])
    with pytest.raises(LensplugError, match=r"\[\(60, 48\)\], and those of the inputs \[\(48, 48\)\]"):
        lens.with_media(inputs, images=[[scene(60, 48)]])
    with pytest.raises(LensplugError, match=r"are \[\], and those of the inputs"):
        lens.with_media(inputs, images=[None])
    with pytest.raises(LensplugError, match="give as many"):
        lens.with_media(inputs, images=[[picture, picture]])
    with pytest.raises(LensplugError, match=r"2 examples, expected one: inputs\[0:1\]"):
        lens.with_media(inputs.expand(2), images=[[picture]])
    assert torch.equal(lens.with_media(inputs, audio=[None]).embeds, lens.with_media(inputs, images=[[picture]]).embeds)
    with pytest.raises(LensplugError, match="the image of these inputs is not known"):
        lens.with_media(lens.encode(inputs.model_inputs), audio=[[]])
    unprocessed = lensplug.wrap(lens.hf_model, None, check=False)
    with pytest.raises(LensplugError, match="no processor"):
        unprocessed.with_media(inputs, images=[[picture]])
