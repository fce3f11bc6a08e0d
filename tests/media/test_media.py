"""Sounds and pictures as users have them: files of every kind, arrays, tensors, pairs; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from support.audio_llamas import audio_llama, sound

import lensplug
from lensplug.media import Sound, load_sound

TONE = np.sin(2 * np.pi * 440 * np.arange(4410) / 44100).astype(np.float32) * 0.5


@pytest.mark.parametrize(
    "source",
    [
        (TONE, 44100),
        (torch.from_numpy(TONE), 44100),
        (TONE.tolist(), 44100),
        (TONE.astype(np.float64), np.int64(44100)),
        ((TONE * 2**15).astype(np.int16), 44100),
        (np.stack([TONE, TONE]), 44100),
        (np.stack([TONE * 1.5, TONE * 0.5], axis=1), 44100),
        Sound(torch.from_numpy(TONE), 44100),
    ],
)
def test_arrays_and_tensors(source):
    loaded = load_sound(source)
    assert loaded.sampling_rate == 44100 and loaded.waveform.dtype == torch.float32
    assert np.allclose(loaded.waveform.numpy(), TONE, atol=1e-4)
    assert loaded.duration_s == pytest.approx(0.1)


@pytest.mark.parametrize(("ending", "rate"), [("wav", 44100), ("flac", 16000), ("ogg", 48000), ("mp3", 22050)])
@pytest.mark.parametrize("channels", [1, 2])
def test_files(ending, rate, channels, tmp_path):
    time = np.arange(rate) / rate
    tone = 0.4 * np.sin(2 * np.pi * 300 * time)
    soundfile.write(tmp_path / f"tone.{ending}", np.stack([tone] * channels, axis=1), rate)
    loaded = load_sound(tmp_path / f"tone.{ending}")
    assert loaded.sampling_rate == rate and loaded.duration_s == pytest.approx(1, abs=0.06)
    spectrum = np.abs(np.fft.rfft(loaded.waveform.numpy()))
    assert np.fft.rfftfreq(len(loaded.waveform), 1 / rate)[spectrum.argmax()] == pytest.approx(300, abs=2)
    assert float(loaded.waveform.abs().max()) == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(("rate", "wanted"), [(44100, 16000), (8000, 16000), (16000, 16000), (48000, 8000)])
def test_resampling_keeps_pitch_and_length(rate, wanted):
    time = np.arange(rate) / rate
    resampled = load_sound((0.5 * np.sin(2 * np.pi * 500 * time), rate)).at_rate(wanted)
    expected = 0.5 * np.sin(2 * np.pi * 500 * np.arange(wanted) / wanted)
    assert len(resampled.waveform) == wanted and resampled.sampling_rate == wanted
    middle = slice(wanted // 10, -wanted // 10)
    assert np.allclose(resampled.waveform.numpy()[middle], expected[middle], atol=5e-3)


CLIPPED = np.clip(TONE * 2**17, -(2**15), 2**15 - 1).astype(np.int16)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (TONE, r"no sampling rate: give the pair \(waveform, sampling_rate\)"),
        ((TONE, 0), "sampling rate is 0 Hz"),
        ((TONE, 44100.5), "sampling rate is 44100.5 Hz, expected a whole number"),
        ((TONE[:0], 16000), "the sound is empty"),
        ((np.full(100, np.nan), 16000), "100 samples that are NaN or infinite"),
        ((np.full(100, np.inf), 16000), "NaN or infinite"),
        (((TONE * 2**15).astype(np.float32), 16000), "reaches 16384, expected -1 to 1: are these integers.*16384"),
        ((CLIPPED, 16000), "int16 samples are at the end of their range: the waveform was clipped"),
        ((np.zeros((100, 100)), 16000), r"shape \[100, 100\], expected \[sample\]"),
        ("nowhere.wav", "there is no file 'nowhere.wav'"),
        (__file__, "test_media.py' is not a sound that can be read"),
        (3, r"a sound is a int, expected a path or a pair"),
    ],
)
def test_refuses(source, message):
    with pytest.raises(lensplug.LensplugError, match=message):
        load_sound(source)


@pytest.fixture(scope="module")
def lens():
    return lensplug.wrap(*audio_llama("wav2vec2"))


def test_prepare_resamples_and_keeps_the_sound_as_it_came(lens, tmp_path):
    soundfile.write(tmp_path / "a.wav", sound(0.5, rate=44100), 44100)
    with pytest.warns(UserWarning, match="sounds of 44100 Hz are resampled to the 16000 Hz"):
        inputs = lens.prepare("How does the speaker sound?", audio=tmp_path / "a.wav")
    assert inputs.audio[0][0].sampling_rate == 44100
    assert inputs.model_inputs["input_values"].shape[1] == pytest.approx(8000, abs=1)
    assert inputs.modality.names == ("text", "audio")
    assert int(inputs.modality.mask("audio").sum()) == 10


@pytest.mark.parametrize(
    "audio",
    [
        (sound(0.4), 16000),
        [(sound(0.4), 16000)],
        Sound(torch.from_numpy(sound(0.4)), 16000),
    ],
)
def test_one_sound_in_every_form(lens, audio):
    inputs = lens.prepare("When?", audio=audio)
    reference = lens.prepare("When?", audio=[(sound(0.4), 16000)])
    assert torch.equal(inputs.embeds, reference.embeds)


def test_a_batch_with_and_without_sounds(lens):
    inputs = lens.prepare(
        ["One?", "Two of them, in a longer prompt?", "None?"],
        audio=[[(sound(0.4), 16000)], [(sound(0.3, 1), 16000), (sound(0.5, 2), 16000)], []],
    )
    assert inputs.modality.mask("audio").sum(dim=1).tolist() == [10, 20, 0]
    assert [len(own) for own in inputs.audio] == [1, 2, 0]
    alone = lens.prepare("One?", audio=[(sound(0.4), 16000)])
    own = inputs.embeds[0][inputs.attention_mask[0].bool()]
    assert torch.allclose(own, alone.embeds[0], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ["a", "b"], "audio": [(TONE, 44100)]}, "2 prompts, but audio for 1"),
        ({"text": "<audio> a", "audio": [], "chat_template": False}, r"0 audio\(s\) and 1 placeholder"),
        ({"text": "a", "audio": [(TONE, 44100)], "chat_template": False}, r"1 audio\(s\) and 0"),
        ({"text": "a", "audio": [(TONE[:100], 44100)]}, "too few for one frame"),
        (
            {"text": "a", "images": [np.zeros((8, 8, 3), np.uint8)]},
            "image is given, but AudioLlamaProcessor",
        ),
    ],
)
def test_prepare_refuses(lens, arguments, message):
    with pytest.raises(lensplug.LensplugError, match=message):
        lens.prepare(**arguments)
