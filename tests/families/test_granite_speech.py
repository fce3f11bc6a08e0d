"""The timeline of Granite Speech: which seconds each window's three positions are made of, by changing them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from support.audio_llamas import sound
from support.granite_speech import MelSpectrogram, granite_speech, listening_alone

import lensplug
from lensplug.geometry import AudioTimeline

WINDOW_S = 0.3


@cache
def lens(plus: bool = False) -> Any:
    model, processor = granite_speech(plus)
    return lensplug.wrap(listening_alone(model), processor, check=False)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.05 * np.random.default_rng(seed).standard_normal(round(seconds * 16000))).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.02, 0.2, 0.29, 0.3, 0.31, 0.61, 1.0, 7.77])
def test_every_second_is_heard_by_the_three_positions_of_its_window(seconds):
    modality = lens().prepare("when?", audio=[(sound(seconds), 16000)]).modality
    line = modality.audio_timeline()
    assert len(line) == len(modality.audio_positions()) and len(line) % 3 == 0
    assert line.duration_s == pytest.approx(seconds) and line.heard_s is None and not line.padding.any()
    start, end = line.start_s.view(-1, 3), line.end_s.view(-1, 3)
    assert torch.equal(start, start[:, :1].expand(-1, 3)) and torch.equal(end, end[:, :1].expand(-1, 3))
    assert float(start[0, 0]) == 0 and torch.equal(end[:-1, 0], start[1:, 0])
    assert float(end[-1, 0]) > seconds - 0.02
    assert torch.allclose(end[:-1, 0], torch.arange(1, len(end)) * WINDOW_S - 0.005)


@pytest.mark.parametrize("plus", [False, True])
def test_the_positions_that_change_are_those_of_the_window_that_is_changed(plus):
    """Changed up to 20 ms from the edges of a window, where the spectrogram hears both."""
    waveform = noise(4.0)
    before = lens(plus).prepare("when?", audio=[(waveform, 16000)])
    line, at = before.modality.audio_timeline(), before.modality.audio_positions()
    for window in range(0, 13, 3):
        changed = waveform.copy()
        first = round((float(line.start_s[3 * window]) + 0.02) * 16000)
        last = round((float(line.end_s[3 * window]) - 0.02) * 16000)
        changed[first:last] = noise(4.0, window + 1)[first:last]
        after = lens(plus).prepare("when?", audio=[(changed, 16000)])
        moved = (after.embeds - before.embeds)[0, at].norm(dim=-1) > 1e-4
        assert moved.nonzero()[:, 0].tolist() == [3 * window, 3 * window + 1, 3 * window + 2]


def test_a_click_at_the_edge_of_two_windows_is_heard_by_both_and_5_ms_beside_more_by_its_own():
    waveform = noise(2.0)
    before = lens().prepare("when?", audio=[(waveform, 16000)])
    at, edges = before.modality.audio_positions(), np.arange(1, 6) * WINDOW_S - 0.005
    share = {}
    for beside in (-0.006, 0.0, 0.006):
        energy = np.zeros(2)
        for index, edge in enumerate(edges):
            changed = waveform.copy()
            middle = round((edge + beside) * 16000)
            changed[middle - 8 : middle + 8] += noise(1.0, index)[:16] * 4
            after = lens().prepare("when?", audio=[(changed, 16000)])
            moved = (after.embeds - before.embeds)[0, at].square().sum(dim=-1).view(-1, 3).sum(dim=1).numpy()
            assert moved[[window for window in range(7) if window not in (index, index + 1)]].max() < 1e-8
            energy += moved[index : index + 2]
        share[beside] = energy[1] / energy.sum()
    assert share[-0.006] < 0.35 and 0.2 < share[0.0] < 0.8 and share[0.006] > 0.65


def test_sounds_of_a_batch_have_timelines_of_their_own_and_other_sounds_are_refused():
    given = [[(sound(1.3), 16000), (sound(0.5, 3), 16000)], [(sound(2.7), 16000)]]
    inputs = lens().prepare(["when?", "how?"], audio=given)
    places = [(0, 0), (0, 1), (1, 0)]
    lines = [inputs.modality.audio_timeline(index, row) for row, index in places]
    assert [len(line) for line in lines] == [15, 6, 27]
    assert [line.duration_s for line in lines] == pytest.approx([1.3, 0.5, 2.7])
    outputs = dict(inputs.model_inputs)
    with pytest.raises(lensplug.LensplugError, match="is 2.70 s long, and the processor saw one of 1.20 to 1.50 s"):
        lens().encode(outputs, audio=[given[1], given[0][::-1]])
    unknown = lens().encode(outputs).modality
    found = [unknown.audio_timeline(index, row).duration_s for row, index in places]
    assert found == pytest.approx([1.495, 0.595, 2.695], abs=0.01)


def test_values_of_positions_that_hear_the_same_are_painted_as_their_mean():
    times = torch.tensor([0.0, 0, 0, 0.3, 0.3, 0.3])
    line = AudioTimeline(times, times + 0.3, 0.6)
    painted = line.to_seconds(torch.tensor([0.0, 1, 5, 3, 3, 6]), bins=6)
    assert painted.tolist() == [2, 2, 2, 4, 4, 4]


def test_the_spectrogram_of_these_tests_is_that_of_torchaudio():
    torchaudio = pytest.importorskip("torchaudio")
    sizes = {"sample_rate": 16000, "n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 80}
    waveform = torch.from_numpy(sound(0.7))[None]
    ours, theirs = MelSpectrogram(**sizes)(waveform), torchaudio.transforms.MelSpectrogram(**sizes)(waveform)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.max()))
