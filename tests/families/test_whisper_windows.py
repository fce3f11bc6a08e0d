"""Voxtral, GLM-ASR, Qwen2-Audio, Audio Flamingo 3: their logits from the wrapped core, and their timelines."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from support.audio_llamas import sound
from support.audio_relatives import RELATIVES, relative
from support.models import largest_difference, reference_logits, wrapped_logits

import lensplug
from lensplug.families.whisper_windows import STACK, timeline

TWO_IN_A_PROMPT = ("voxtral", "qwen2_audio")
"""The processors of the other two take one sound for each text."""


@pytest.fixture(scope="module", params=[name for name in RELATIVES if name != "musicflamingo"])
def family(request):
    model, processor = relative(request.param)
    return request.param, model, lensplug.wrap(model, processor)


def difference(lens, inputs):
    reference = reference_logits(lens.hf_model, inputs.model_inputs)
    return largest_difference(wrapped_logits(lens, inputs), reference, inputs.attention_mask)


def test_logits_of_one_sound_and_of_another(family):
    _, _, lens = family
    first, other = (lens.prepare("we won the game", audio=[(sound(0.7, seed), 16000)]) for seed in (0, 1))
    assert difference(lens, first) < 1e-4
    assert largest_difference(wrapped_logits(lens, first), wrapped_logits(lens, other)) > 0.1, "the sound must matter"
    assert lens.check(first).agrees


def test_logits_of_a_left_padded_batch(family):
    _, _, lens = family
    inputs = lens.prepare(
        ["we won", "what do the words say today"], audio=[[(sound(1.3), 16000)], [(sound(0.5, 1), 16000)]]
    )
    assert int(inputs.attention_mask[:, 0].min()) == 0
    assert difference(lens, inputs) < 1e-4


def test_logits_of_two_sounds_in_a_prompt(family):
    name, _, lens = family
    audio = [(sound(0.5), 16000), (sound(0.9, 1), 16000)]
    if name not in TWO_IN_A_PROMPT:
        with pytest.raises(lensplug.LensplugError, match="refused its inputs: Got 1 text but 2 audios"):
            lens.prepare("which one?", audio=audio)
        return
    inputs = lens.prepare("which one?", audio=audio)
    assert difference(lens, inputs) < 1e-4
    assert [len(line) for line in inputs.modality.timelines.values()] == [
        int((inputs.modality.media_index == index).sum()) for index in (0, 1)
    ]


def test_a_sound_longer_than_a_window(family):
    name, _, lens = family
    inputs = lens.prepare("when?", audio=[(sound(32.5), 16000)])
    assert difference(lens, inputs) < 1e-4
    line = inputs.modality.audio_timeline()
    if name == "qwen2_audio":
        assert float(line.end_s[-1]) == pytest.approx(30.0), "it hears the first window only"
    elif name == "voxtral":
        assert len(line) == 750 and float(line.end_s[-1]) == 60.0
        assert float(line.start_s[line.padding][0]) == pytest.approx(32.55, abs=0.08)
    else:
        assert float(line.end_s[-1]) == pytest.approx(32.5, abs=0.05) and not line.padding.any()
    assert line.duration_s == pytest.approx(32.5)


@pytest.mark.parametrize("seconds", [0.1, 0.33, 1.0, 2.005, 29.99, 30.0])
def test_as_many_positions_as_placeholders(family, seconds):
    name, model, lens = family
    outputs = lens.prepare("when?", audio=[(sound(seconds), 16000)])
    count = int((outputs.tokens == lens.core.placeholder_ids["audio"]).sum())
    line = outputs.modality.audio_timeline()
    assert len(line) == count == len(outputs.modality.audio_positions())
    assert line.duration_s == pytest.approx(seconds)
    unknown = lens.encode(outputs.model_inputs).modality.audio_timeline()
    assert torch.equal(unknown.start_s, line.start_s)
    expected = 30.0 if name == "voxtral" else seconds
    assert unknown.duration_s == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize("size", sorted(set(STACK.values())))
def test_positions_tile_the_windows(size):
    line = timeline(3000 // size, size, 47.0)
    assert float(line.start_s[0]) == 0 and float(line.end_s[-1]) == 60.0
    assert torch.allclose(line.end_s[:-1], line.start_s[1:])
    assert float(line.start_s[1500 // size]) == 30.0
    assert float(line.start_s[5]) == pytest.approx(5 * size * 0.02 - 0.01), "frames lie around every 20 ms"


@torch.no_grad()
def test_changing_an_interval_changes_the_position_that_the_timeline_names(family):
    """Fifty pairs of sound and position. Attention in the encoder is made weak: it spreads every change."""
    name, model, lens = family
    for parameter, weight in model.named_parameters():
        if "audio_tower" in parameter and ("out_proj" in parameter or "o_proj" in parameter):
            weight.mul_(0.02)
    rng, exact, near = random.Random(0), 0, 0
    for trial in range(50):
        waveform = sound(rng.uniform(1.0, 2.0), trial)
        inputs = lens.prepare("when?", audio=[(waveform, 16000)])
        line, at = inputs.modality.audio_timeline(), inputs.modality.audio_positions()
        named = rng.randrange(int((line.end_s <= line.duration_s).sum()))
        first, last = round(float(line.start_s[named]) * 16000), round(float(line.end_s[named]) * 16000)
        changed = waveform.copy()
        # Loud enough to be heard, but not the loudest: the spectrogram is clipped 8 decades below its maximum.
        changed[first:last] = 0.05 * np.random.default_rng(trial).standard_normal(last - first)
        other = lens.prepare("when?", audio=[(changed.astype(np.float32), 16000)])
        found = int((inputs.embeds - other.embeds)[0, at].norm(dim=-1).argmax())
        exact += found == named
        near += abs(found - named) <= 1
    print(f"{name}: the named position changes most in {exact} of 50, it or its neighbour in {near}")
    assert near == 50 and exact >= 45
