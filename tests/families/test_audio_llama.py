"""The timeline of audio-LLaMA: as many positions as placeholders, and proved by changing the sound."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.audio_llamas import ENCODERS, audio_llama, processed, sound

import lensplug
from lensplug.audio_llama import AudioLlamaConfig
from lensplug.families.audio_llama import timeline
from lensplug.geometry.audio_frames import Frames

STANDARD = [(10, 5, 0), (3, 2, 0), (3, 2, 0), (3, 2, 0), (3, 2, 0), (2, 2, 0), (2, 2, 0)]


def test_frames_of_wav2vec2_by_hand():
    """Windows of 400 samples every 320: the first is centred on sample 200."""
    frames = Frames.of(STANDARD, 16000)
    assert frames.stride_s == 0.02
    start, end = frames.span(torch.tensor([0, 1, 5]), torch.tensor([0, 1, 7]))
    assert torch.allclose(start, torch.tensor([40, 360, 1640]) / 16000)
    assert torch.allclose(end, torch.tensor([360, 680, 2600]) / 16000)


def test_ten_vectors_of_a_second_by_hand():
    """49 frames: vector 1 lies at frame 5 1/3 and blends frames 5 and 6."""
    line = timeline(AudioLlamaConfig(), 16000)
    assert len(line) == 10 and line.duration_s == 1.0
    assert torch.allclose(line.start_s[:3], torch.tensor([40, 40 + 5 * 320, 40 + 10 * 320]) / 16000)
    assert torch.allclose(line.end_s[:3], torch.tensor([360, 360 + 6 * 320, 360 + 11 * 320]) / 16000)
    assert line.end_s[-1] == pytest.approx((40 + 49 * 320) / 16000)
    assert not line.padding.any()


@settings(max_examples=40, deadline=None)
@given(st.floats(0.06, 3.0), st.one_of(st.integers(1, 30), st.none()), st.integers(1, 9))
def test_a_timeline_is_in_order_and_inside_the_sound(seconds, vectors, per_vector):
    config = AudioLlamaConfig(num_audio_vectors=vectors, frames_per_vector=None if vectors else per_vector)
    line = timeline(config, round(seconds * 16000))
    assert bool((line.start_s < line.end_s).all())
    assert bool((line.start_s[1:] >= line.start_s[:-1]).all()) and bool((line.end_s[1:] >= line.end_s[:-1]).all())
    assert float(line.start_s[0]) >= 0 and float(line.end_s[-1]) <= line.duration_s + 1e-6
    if len(line) > 1:
        assert len(line.edges_s) == len(line) + 1 and bool((line.edges_s[1:] >= line.edges_s[:-1]).all())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("vectors", [{"num_audio_vectors": 10}, {"frames_per_vector": 3}])
def test_as_many_positions_as_placeholders(encoder, vectors):
    lens = lensplug.wrap(*audio_llama(encoder, **vectors), check=False)
    audio = [[(sound(0.31), 16000), (sound(0.8, 1), 16000)], [], [(sound(0.12, 2, rate=8000), 8000)]]
    inputs = lens.prepare(["one and two", "none", "another"], audio=audio)
    for example, index, seconds in ((0, 0, 0.31), (0, 1, 0.8), (2, 0, 0.12)):
        line = inputs.modality.audio_timeline(index, example)
        assert line is not None
        assert len(line) == len(inputs.modality.audio_positions(index, example))
        assert line.duration_s == pytest.approx(seconds)
    assert sum(len(line) for line in inputs.modality.timelines.values()) == int(inputs.modality.mask("audio").sum())
    again = lens.encode(inputs.model_inputs).modality.audio_timeline(1, 0)
    assert again is not None and again.duration_s == pytest.approx(0.8, abs=0.01), "from the mask"


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["wav2vec2", "hubert", "wavlm", "whisper"])
def test_changing_an_interval_changes_the_vectors_that_the_timeline_names(encoder):
    """Sixty pairs of sound and position: of all positions, the named one changes most.

    The encoder's attention is made weak: through it every frame hears of every change, which the timeline does not
    claim to describe.
    """
    model, processor = audio_llama(encoder, num_audio_vectors=6)
    for name, weight in model.model.audio_tower.named_parameters():
        if "out_proj" in name or "pos_conv" in name:
            weight.mul_(0.02)
    lens = lensplug.wrap(model, processor, check=False)
    rng, exact = random.Random(0), 0
    for trial in range(60):
        seconds = rng.uniform(0.5, 1.4)
        waveform = sound(seconds, trial)
        inputs = lens.encode(processed(processor, ["<audio>"], [waveform]))
        line = inputs.modality.audio_timeline()
        assert line is not None
        named = rng.randrange(len(line))
        changed = waveform.copy()
        first, last = round(float(line.start_s[named]) * 16000), round(float(line.end_s[named]) * 16000)
        noise = np.random.default_rng(trial).standard_normal(len(changed[first:last]))
        changed[first:last] += (0.05 * noise).astype(np.float32)
        other = lens.encode(processed(processor, ["<audio>"], [changed]))
        exact += int((inputs.embeds - other.embeds)[0].norm(dim=-1).argmax()) == named
    assert exact >= 58, exact
