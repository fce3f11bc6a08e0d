"""Sounds as people have them: every kind of file and of array, what a data set holds; what is said and what refused."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from support.media_files import pitch, tone, write_sound, write_video

from lensplug.errors import LensplugError
from lensplug.media import load_sound

TONE = tone()


def check(sound, seconds=1.0, rate=16000, abs=0.07):
    assert sound.sampling_rate == rate and sound.duration_s == pytest.approx(seconds, abs=abs)
    assert pitch(sound.waveform, rate) == pytest.approx(300, abs=2)
    assert float(sound.waveform.abs().max()) == pytest.approx(0.4, abs=0.05)


class Pipe(io.RawIOBase):
    """Who writes into it can go back no more, so that a length at the beginning stays unknown."""

    def __init__(self):
        self.content = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.content += bytes(data)
        return len(data)


def test_a_flac_of_unknown_length(tmp_path):
    import av
    from support.media_files import mux_sound

    with av.open(pipe := Pipe(), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=16000, layout="mono")
        mux_sound(container, stream, (TONE * 2**15).astype(np.int16), form="s16")
    path = tmp_path / "streamed.flac"
    path.write_bytes(pipe.content)
    assert soundfile.info(path).frames > 2**62
    check(load_sound(path), abs=1e-6)
    check(load_sound(bytes(pipe.content)), abs=1e-6)


@pytest.mark.parametrize("size", [0, 2**32 - 1])
def test_a_wav_of_unknown_length(tmp_path, size):
    soundfile.write(tmp_path / "a.wav", TONE, 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    at = content.index(b"data")
    content[at + 4 : at + 8] = size.to_bytes(4, "little")
    check(load_sound(bytes(content)), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "codec", "form", "rate"),
    [("a.m4a", "aac", "fltp", 16000), ("a.webm", "libopus", "flt", 48000), ("a.mka", "pcm_s16le", "s16", 16000)],
)
def test_files_that_soundfile_does_not_read(tmp_path, name, codec, form, rate):
    waveform = (TONE * 2**15).astype(np.int16) if form == "s16" else TONE
    path = write_sound(tmp_path / name, waveform, codec, form)
    for source in (path, str(path), path.read_bytes(), {"bytes": path.read_bytes(), "path": None}):
        check(load_sound(source), rate=rate)


def test_the_sound_of_a_video_begins_when_a_player_plays_it(tmp_path):
    check(load_sound(write_video(tmp_path / "a.mp4", sound=TONE)))
    late = load_sound(write_video(tmp_path / "late.mkv", sound=TONE, sound_pts=8000))
    assert late.duration_s == pytest.approx(1.5, abs=0.1)
    assert float(late.waveform[:6000].abs().max()) == 0 and float(late.waveform[10000:].abs().max()) > 0.3


def test_files_of_sounds_are_refused_with_what_to_do(tmp_path, monkeypatch):
    silent = write_video(tmp_path / "silent.mp4")
    with pytest.raises(LensplugError, match=r"silent.mp4' is not a sound.*no sound is in it. It has pictures alone"):
        load_sound(silent)
    with pytest.raises(LensplugError, match="is an address, and files are wanted"):
        load_sound("http://example.org/a.wav")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(LensplugError, match=r"m4a, webm and the sound of videos need PyAV: pip install 'lensplug\[vid"):
        load_sound(silent)


def cut(content):
    return content[: len(content) * 6 // 10]


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_a_file_that_is_cut_short_is_said(tmp_path, name):
    noise = 0.1 * np.random.default_rng(0).standard_normal(64000)
    soundfile.write(tmp_path / name, noise, 16000)
    content = cut((tmp_path / name).read_bytes())
    with pytest.warns(UserWarning, match=r"is cut short: its header declares 4.\d s, of which [12].\d s can be read"):
        sound = load_sound(content)
    assert 1.5 < sound.duration_s < 2.7


def decoder(channels):
    """As torchcodec's AudioDecoder, which the data sets of Hugging Face give since datasets 4."""
    samples = SimpleNamespace(data=torch.from_numpy(channels), sample_rate=16000, pts_seconds=0.0)
    return SimpleNamespace(get_all_samples=lambda: samples), samples


@pytest.mark.parametrize(
    "source",
    [
        {"array": TONE, "sampling_rate": 16000, "path": None},
        {"array": TONE.tolist(), "sampling_rate": 16000},
        {"raw": TONE, "sampling_rate": 16000},
        *decoder(TONE[None]),
        *decoder(np.stack([TONE, TONE])),
        (TONE, 16000.0),
        [TONE, 16000],
        (TONE, torch.tensor(16000)),
        (16000, TONE),
        (np.stack([TONE, TONE], axis=1), 16000),
        (TONE[:, None], 16000),
        (TONE[None], 16000),
        (torch.from_numpy(TONE).to(torch.float64).requires_grad_(), 16000),
        (TONE.astype(">f4"), 16000),
        ((TONE * 2**15).astype(np.int16), 16000),
        ((TONE.astype(np.float64) * 2**31).astype(np.int32), 16000),
        (torch.from_numpy((TONE * 2**15).astype(np.int16)), 16000),
    ],
)
def test_what_people_have_in_memory(source):
    sound = load_sound(source)
    assert sound.sampling_rate == 16000 and np.allclose(sound.waveform.numpy(), TONE, atol=1e-4)


def test_eight_bits_have_their_silence_where_their_type_has_it():
    signed = (TONE * 2**7).round().astype(np.int8)
    for source in (signed, (signed.astype(np.int16) + 128).astype(np.uint8)):
        assert np.allclose(load_sound((source, 16000)).waveform.numpy(), TONE, atol=1 / 128)


def test_a_list_of_sounds_is_no_sound(lens):
    from lensplug.media import is_one_sound

    assert not is_one_sound([(TONE, 16000), (TONE, 16000)]) and not is_one_sound([])
    assert is_one_sound([TONE, 16000]) and is_one_sound({"array": TONE, "sampling_rate": 16000})


def test_channels_that_cancel_each_other_are_said():
    # Independent channels, one silent channel, and one that is a little late are no such thing.
    other = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
    for fine in ([TONE, other], [TONE, 0 * TONE], [TONE, np.roll(TONE, 5)], [other] + [0 * TONE] * 5):
        load_sound((np.stack(fine), 16000))
    with pytest.warns(UserWarning, match=r"2 channels cancel each other.*has 0%. Give one of them") as warned:
        sound = load_sound((np.stack([TONE, -TONE]), 16000))
    assert float(sound.waveform.abs().max()) == 0 and warned[0].filename == __file__


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((TONE, True), "sampling rate is True Hz"),
        ((TONE, np.True_), "sampling rate is"),
        ((TONE, float("nan")), "sampling rate is nan Hz"),
        ((TONE, -16000), "sampling rate is -16000 Hz"),
        ((TONE.astype(np.complex64), 16000), "a waveform is complex64, expected floats"),
        (([1, -3, 5], 16000), "a waveform is int64, expected floats from -1 to 1"),
        (([0.1, "a"], 16000), "a waveform is"),
        (([[0.1, 0.2], [0.1]], 16000), "a waveform is a list that is no array"),
        (((TONE * 2**15).astype(np.int32), 16000), "int32 samples reach 131.. of 2147483648, next to silence: are th"),
        ((TONE.astype(np.uint16), 16000), "a waveform is uint16"),
        ((TONE > 0, 16000), "a waveform is bool"),
        ((np.zeros((2, 2)), 16000), r"shape \[2, 2\]: which axis is that of the channels"),
        ((np.zeros((1, 1, 100)), 16000), r"shape \[1, 1, 100\], expected \[sample\], \[channel, sample\]"),
        (([], 16000), "the sound is empty"),
        ({"array": TONE}, "a dictionary without sampling_rate"),
        ({"bytes": None, "path": None}, "a sound is a dictionary of"),
        (b"\0" * 100, "the file of 100 bytes is not a sound that can be read"),
    ],
)
def test_refuses(source, message):
    with pytest.raises(LensplugError, match=message):
        load_sound(source)
