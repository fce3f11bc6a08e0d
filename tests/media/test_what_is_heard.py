"""How much of a long sound each audio family hears: changed behind the end of its hearing, nothing changes."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from support.audio_llamas import audio_llama, sound
from support.audio_relatives import relative

import lensplug
from lensplug import views
from lensplug.errors import LensplugError
from lensplug.geometry import AudioTimeline

HEARS = {"voxtral": None, "glmasr": 60.0, "audioflamingo3": 60.0, "qwen2_audio": 30.0}
"""Seconds; the processors of two of them are told 64 s here, for the minutes of the real ones take long."""


@cache
def family(name: str) -> Any:
    model, processor = relative(name)
    if hasattr(processor, "max_audio_len"):
        processor.max_audio_len = 64
    return lensplug.wrap(model, processor, check=False)


def embeds(lens, waveform):
    inputs = lens.prepare("when?", audio=[(waveform, 16000)])
    return inputs, inputs.embeds


@pytest.mark.filterwarnings("ignore:the model hears")
@pytest.mark.parametrize("name", HEARS)
def test_behind_the_end_of_its_hearing_nothing_changes(name):
    lens, hears = family(name), HEARS[name]
    seconds = 62.0 if hears is None else hears + 2
    waveform = sound(seconds)
    inputs, before = embeds(lens, waveform)
    line = inputs.modality.audio_timeline()
    assert line.duration_s == pytest.approx(seconds) and line.heard_s == hears
    painted = line.to_seconds(torch.ones(len(line)), bins=int(seconds * 10))
    assert int(painted.isnan().sum()) == (0 if hears is None else 20)
    for start in (seconds - 1.5,) if hears is None else (hears - 1.5, hears + 0.1):
        changed, first = waveform.copy(), round(start * 16000)
        changed[first : first + 16000] = sound(1.0, 7)
        moved = (embeds(lens, changed)[1] - before).abs().amax(dim=-1)[0]
        behind = hears is not None and start > hears
        assert bool(moved.any()) != behind
        if not behind:  # and it is heard where the timeline says
            at = inputs.modality.audio_positions()[(line.start_s < start + 1) & (line.end_s > start)]
            assert int(moved.argmax()) in at.tolist()


@pytest.mark.parametrize("name", [name for name, hears in HEARS.items() if hears is not None])
def test_a_warning_says_what_is_not_heard(name):
    hears = HEARS[name]
    assert hears is not None
    match = rf"the model hears the first {hears} s of the {hears + 2} s of sound 0 of example 0: its processor cuts off"
    with pytest.warns(UserWarning, match=match) as warned:
        family(name).prepare("when?", audio=[(sound(hears + 2), 16000)])
    assert [one.filename for one in warned if "hears" in str(one.message)] == [__file__]


def test_the_real_limits_of_two_processors():
    """GLM-ASR's says 655 s, and takes whole windows."""
    assert relative("glmasr")[1].max_audio_len // 30 * 30 == 630
    assert relative("audioflamingo3")[1].max_audio_len // 30 * 30 == 600


@pytest.mark.parametrize("encoder", ["wav2vec2", "whisper"])
def test_an_audio_llama_hears_everything_or_refuses(encoder):
    lens = lensplug.wrap(*audio_llama(encoder), check=False)
    waveform = sound(3.0)
    inputs, before = embeds(lens, waveform)
    changed = waveform.copy()
    changed[-3200:] = sound(0.2, 7)
    assert bool((embeds(lens, changed)[1] - before).any())
    assert inputs.modality.audio_timeline().heard_s is None
    if encoder == "whisper":
        with pytest.raises(LensplugError, match="30.5 s long, and the encoder takes 30 s at most: cut it"):
            embeds(lens, sound(30.5))


@pytest.mark.parametrize("name", [*HEARS, "wav2vec2"])
def test_a_sound_that_is_not_the_one_of_the_processor_is_refused(name):
    lens = lensplug.wrap(*audio_llama(name), check=False) if name == "wav2vec2" else family(name)
    inputs = lens.prepare("when?", audio=[(sound(1.0), 16000)])
    assert lens.encode(inputs.model_inputs, audio=[(sound(1.0, 1, rate=8000), 8000)]).modality.audio_timeline()
    longer = 31.0 if name == "voxtral" else 2.0  # all that Voxtral tells are its windows
    with pytest.raises(
        LensplugError, match=rf"sound 0 of example 0 is {longer:.2f} s long, and the processor saw one of"
    ):
        lens.encode(inputs.model_inputs, audio=[(sound(longer), 16000)])


def test_edges_end_with_what_is_heard():
    line = AudioTimeline(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]), duration_s=4.0, heard_s=2.0)
    assert line.edges_s.tolist() == [0, 1, 2]
    assert line.to_seconds(torch.tensor([5.0, 7.0]), bins=4).nan_to_num(-1).tolist() == [5, 7, -1, -1]
    whole = AudioTimeline(line.start_s, line.end_s, duration_s=2.04)
    assert whole.to_seconds(torch.tensor([5.0, 7.0]), bins=51).isnan().sum() == 0


@pytest.mark.filterwarnings("ignore:the model hears")
def test_the_view_shades_what_is_not_heard():
    lens = family("qwen2_audio")
    inputs = lens.prepare("when?", audio=[(sound(40.0), 16000)])
    values = torch.rand(inputs.tokens.shape[1])
    fig = views.sound_overlay(values, inputs)
    assert "of which 30.0 of 40.0 s are heard" in fig.layout.title.text
    assert {(shape.x0, shape.x1) for shape in fig.layout.shapes} == {(30.0, 40.0)}
    assert fig.layout.annotations[0].text == "not heard"
    heat = np.asarray(fig.data[1].z, dtype=float)[0]
    assert np.isnan(heat).sum() == 50 and np.isnan(heat[150:]).all()
    assert max(at + width / 2 for at, width in zip(fig.data[0].x, fig.data[0].width, strict=True)) == pytest.approx(30)


def test_the_view_of_a_sound_that_encode_was_not_given():
    lens = family("qwen2_audio")
    waveform = sound(40.0)
    outputs = lens.processor(text="<|AUDIO|> when?", audio=[waveform], sampling_rate=16000, return_tensors="pt")
    inputs = lens.encode(outputs)
    values = torch.rand(inputs.tokens.shape[1])
    fig = views.sound_overlay(values, inputs, sound=(waveform, 16000))
    assert {(shape.x0, shape.x1) for shape in fig.layout.shapes} == {(30.0, 40.0)}
    short = lens.prepare("when?", audio=[(sound(2.0), 16000)])
    with pytest.warns(UserWarning, match="the sound is 1.00 s long, and the one that the processor saw 2.00 s"):
        views.sound_overlay(torch.rand(short.tokens.shape[1]), short, sound=(sound(1.0), 16000))


def test_the_view_of_windows_of_which_a_sound_fills_a_part():
    lens = family("voxtral")
    inputs = lens.encode(lens.prepare("when?", audio=[(sound(3.0), 16000)]).model_inputs)
    assert inputs.modality.audio_timeline().duration_s == 30.0
    values = torch.ones(inputs.tokens.shape[1])
    fig = views.sound_overlay(values, inputs, sound=(sound(3.0), 16000))
    assert {(shape.x0, shape.x1) for shape in fig.layout.shapes} == {(3.0, 30.0)}
    assert "90% of the audio's mass is on padding" in fig.layout.title.text
