"""Another picture, video or sound in place of a prompt's own, against prompts prepared with it and plain hooks."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import QUESTION, scene

import lensplug
from lensplug import LensplugError, analysis
from lensplug.media.blank import blank_image, muffled
from lensplug.media.sounds import load_sound
from lensplug.tiny.voices import make_voice

TARGET = ("Red", "Blue")


@pytest.fixture(scope="module")
def tiny():
    return lensplug.tiny.llava_onevision()


def traced(lens, inputs, target=TARGET, **options):
    return analysis.causal_tracing(lens, inputs, target, groups=thirds(inputs), progress=False, **options)


def patched(lens, inputs, corrupt):
    return analysis.activation_patching(
        lens, inputs, corrupt, TARGET, activation="resid_post", groups=thirds(inputs), progress=False
    )


def thirds(inputs):
    """Three groups of positions, which follow each other."""
    return (torch.arange(inputs.shape[1]) * 3 // inputs.shape[1]).expand(inputs.shape[0], -1)


def by_plain_hooks(lens, inputs, corrupt, found, target=TARGET):
    """The target with the clean stream of each layer put into each group's positions of the corrupt prompt."""
    _, clean = lens.run_with_cache(inputs, names_filter="resid_post")
    first, second = (lens.tokenizer.encode(word, add_special_tokens=False)[0] for word in target)
    values = torch.full(found.values.shape[1:3], torch.nan)
    for layer in range(lens.model.cfg.n_layers):
        for group in found.groups_of(0):
            at = (found.groups[0] == group)[None, :, None]

            def put_back(value, hook, at=at):
                return torch.where(at, clean[hook.name], value)

            logits = lens.run_with_hooks(corrupt, fwd_hooks=[(f"blocks.{layer}.hook_resid_post", put_back)])
            values[layer, group] = (logits[0, -1, first] - logits[0, -1, second]).detach()
    return values


def test_another_picture_is_resized_and_put_in_its_place(tiny):
    inputs = tiny.prepare(QUESTION, images=[scene(48, 48, 3)])
    larger = scene(120, 80, 5)
    corrupt = tiny.prepare(QUESTION, images=[larger.resize((48, 48), Image.Resampling.BICUBIC)])
    found = traced(tiny, inputs, another=larger)
    expected = by_plain_hooks(tiny, inputs, corrupt, found)
    torch.testing.assert_close(found.values[0, :, :, 0], expected, atol=2e-3, rtol=1e-3, equal_nan=True)
    assert float((found.values - found.corrupt).nan_to_num().abs().max()) > 0.1
    assert found.corruption == "another" and "image corrupted by another one" in found.provenance.convention
    as_array = traced(tiny, inputs, corruption="another", another=[np.asarray(larger)])
    torch.testing.assert_close(as_array.values, found.values, equal_nan=True)


def test_prepared_inputs_of_several_examples(tiny):
    clean = tiny.prepare([QUESTION] * 2, images=[[scene(48, 48, 3)], [scene(96, 48, 5)]])
    other = tiny.prepare([QUESTION] * 2, images=[[scene(48, 48, 7)], [scene(96, 48, 11)]])
    found = traced(tiny, clean, another=other)
    expected = patched(tiny, clean, other)
    torch.testing.assert_close(found.values, expected.values, equal_nan=True)
    torch.testing.assert_close(found.corrupt, expected.corrupt)


def test_of_several_pictures_one_is_changed(tiny):
    pictures, other = [scene(48, 48, 3), scene(48, 48, 5)], scene(48, 48, 7)
    inputs = tiny.prepare(QUESTION, images=[pictures])
    corrupt = tiny.prepare(QUESTION, images=[[pictures[0], other]])
    found = traced(tiny, inputs, another=other, media_index=1)
    expected = patched(tiny, inputs, corrupt)
    torch.testing.assert_close(found.values, expected.values, atol=2e-3, rtol=1e-3, equal_nan=True)
    assert "image 1 corrupted" in found.provenance.convention
    torch.testing.assert_close(traced(tiny, inputs, another=corrupt, media_index=1).values, expected.values)
    both = traced(tiny, inputs, another=[blank_image(picture) for picture in pictures])
    torch.testing.assert_close(both.values, traced(tiny, inputs, corruption="blank").values, equal_nan=True)
    blank = traced(tiny, inputs, corruption="blank", media_index=0)
    assert float((blank.corrupt - both.corrupt).abs()) > 1e-3
    quiet = traced(tiny, inputs, noise=2.0, draws=1, media_index=0)
    assert float((quiet.corrupt - traced(tiny, inputs, noise=2.0, draws=1).corrupt).abs()) > 1e-3
    with pytest.raises(LensplugError, match=r"another is 1 image\(s\), and 2 are corrupted.*media_index="):
        traced(tiny, inputs, another=other)
    with pytest.raises(LensplugError, match="differs in more than the image 0: so does the image"):
        traced(tiny, inputs, another=corrupt, media_index=0)
    with pytest.raises(LensplugError, match="has no image 2 to corrupt"):
        traced(tiny, inputs, another=other, media_index=2)


@pytest.mark.parametrize("corruption", ["blank", "mean", "blur", "noise", "another"])
def test_videos_are_corrupted_as_pictures_are(tiny, corruption):
    frames, others = ([scene(48, 48, first + n) for n in range(3)] for first in (3, 20))
    inputs = tiny.prepare(QUESTION, videos=[frames])
    replaced = {
        "another": others,
        "blur": [blank_image(each, "blur") for each in frames],
        "mean": [blank_image(each, "mean") for each in frames],
        "blank": [blank_image(each) for each in frames],
    }
    found = traced(
        tiny, inputs, draws=1, **({"another": others} if corruption == "another" else {"corruption": corruption})
    )
    assert float((found.clean - found.corrupt).abs()) > 1e-3
    if corruption in replaced:
        corrupt = tiny.prepare(QUESTION, videos=[replaced[corruption]])
        expected = by_plain_hooks(tiny, inputs, corrupt, found)
        torch.testing.assert_close(found.values[0, :, :, 0], expected, atol=2e-3, rtol=1e-3, equal_nan=True)


def test_another_sound_is_cut_and_a_muffled_one_is_as_long():
    lens, target = lensplug.tiny.audio_llama(), ("Happy", "Sad")
    voices = [make_voice(random.Random(seed), emotion=emotion) for seed, emotion in ((4, "happy"), (5, "sad"))]
    inputs = lens.prepare(voices[0].prompt("sound"), audio=[voices[0].audio])
    own, other = (load_sound(voice.audio) for voice in voices)
    twice = (torch.cat([other.waveform] * 2), other.sampling_rate)
    for options, sound in (
        ({"another": twice}, (twice[0][: len(own.waveform)], own.sampling_rate)),
        ({"corruption": "blur"}, muffled(own)),
    ):
        found = traced(lens, inputs, target, **options)
        corrupt = lens.prepare(voices[0].prompt("sound"), audio=[sound])
        expected = by_plain_hooks(lens, inputs, corrupt, found, target)
        torch.testing.assert_close(found.values[0, :, :, 0], expected, atol=2e-3, rtol=1e-3, equal_nan=True)
        assert float((found.clean - found.corrupt).abs()) > 0.01
    with pytest.raises(LensplugError, match="a sound has no mean colour"):
        analysis.causal_tracing(lens, inputs, target, corruption="mean", progress=False)


def test_refusals(tiny):
    picture = scene(48, 48, 3)
    inputs = tiny.prepare(QUESTION, images=[picture])
    for options, message in (
        ({"corruption": "another"}, "needs another="),
        ({"corruption": "blur", "another": picture}, "leave one of them out"),
        ({"another": picture}, "nothing is corrupted by 'another'"),
        ({"another": inputs}, "nothing is corrupted by 'another'"),
        ({"another": tiny.prepare("Is there a star?", images=[scene(48, 48, 5)])}, "examples and positions"),
        ({"another": tiny.prepare(QUESTION.replace("color", "shape"), images=[picture])}, "other words"),
        ({"another": 5}, "images is a int"),
        ({"another": picture, "media_index": -1}, "media_index is -1"),
    ):
        with pytest.raises(LensplugError, match=message):
            traced(tiny, inputs, **options)
    wide, tall = (tiny.prepare(QUESTION, images=[scene(*size, 5)]) for size in ((96, 48), (48, 96)))
    if wide.shape == tall.shape:
        with pytest.raises(LensplugError, match="cut otherwise"):
            traced(tiny, wide, another=tall)
    batch = tiny.prepare([QUESTION] * 2, images=[[picture]] * 2)
    with pytest.raises(LensplugError, match=r"takes one example \(or prepared inputs as another=\), 2 came"):
        traced(tiny, batch, another=picture)
