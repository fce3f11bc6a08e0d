"""Figures of sounds, of received attention, of comparisons and ablations hold the result's own numbers."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
import pytest
import soundfile
import torch

from lensplug import LensplugError, analysis, views
from lensplug.geometry import AudioTimeline
from lensplug.views.groups import group_positions


def test_bars_stand_where_the_positions_hear(heard):
    values = torch.arange(heard.inputs.tokens.shape[1]).float()
    fig = views.sound_overlay(values, heard.inputs)
    bars, heat, wave, spectrum = fig.data
    line = heard.inputs.modality.audio_timeline()
    at = heard.inputs.modality.audio_positions()
    np.testing.assert_allclose(bars.y, values[at].numpy())
    np.testing.assert_allclose(np.array(bars.x) - np.array(bars.width) / 2, line.start_s.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.array(bars.x) + np.array(bars.width) / 2, line.end_s.numpy(), atol=1e-6)
    np.testing.assert_allclose(heat.z[0], line.to_seconds(values[at], bins=200).numpy())
    assert heat.x0 + heat.dx * 199.5 == pytest.approx(line.duration_s)
    assert max(wave.x) <= line.duration_s and max(wave.y) == pytest.approx(1, abs=1e-3) or min(wave.y) == -1


def test_the_spectrogram_shows_a_tone_at_its_pitch(heard):
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    fig = views.sound_overlay(torch.ones(heard.inputs.tokens.shape[1]), heard.inputs, sound=(tone, 16000))
    spectrum = fig.data[-1]
    loudest = np.asarray(spectrum.z, dtype=float).mean(axis=1).argmax()
    assert spectrum.y0 + loudest * spectrum.dy == pytest.approx(1.0, abs=0.12)


def test_a_slider_for_several_and_the_same_scale_for_all(heard):
    rows = {name: torch.rand(heard.inputs.tokens.shape[1]) * scale for name, scale in (("a", 1), ("b", 3))}
    fig = views.sound_overlay(rows, heard.inputs)
    assert [trace.visible for trace in fig.data[:4]] == [True, True, False, False]
    step = fig.layout.sliders[0].steps[1]
    assert step.args[0]["visible"] == [False, False, True, True, True, True]
    assert fig.data[1].zmax == fig.data[3].zmax


def test_padding_is_shaded_and_its_mass_is_stated(heard):
    line = heard.inputs.modality.audio_timeline()
    start, end = torch.arange(10).float(), torch.arange(10).float() + 1
    padded = AudioTimeline(start, end, 8.0)
    modality = dataclasses.replace(heard.inputs.modality, timelines={(0, 0): padded})
    inputs = dataclasses.replace(heard.inputs, modality=modality)
    values = torch.zeros(heard.inputs.tokens.shape[1])
    values[heard.inputs.modality.audio_positions()] = torch.tensor([1.0] * 8 + [2.0, 0.0])
    sound = (np.random.default_rng(0).standard_normal(8000 * 8) * 0.1, 8000)
    fig = views.sound_overlay(values, inputs, sound=sound)
    assert "20% of the audio's mass is on padding" in fig.layout.title.text
    assert [(shape.x0, shape.x1) for shape in fig.layout.shapes] == [(8.0, 10.0)] * 3
    assert not views.sound_overlay(values, heard.inputs).layout.shapes and line.duration_s > 0


def test_overlay_refuses(heard, seen):
    with pytest.raises(LensplugError, match=r"values have the shape \[3\]"):
        views.sound_overlay(torch.zeros(3), heard.inputs)
    encoded = heard.lens.encode(heard.inputs.model_inputs)
    values = torch.zeros(heard.inputs.tokens.shape[1])
    with pytest.raises(LensplugError, match="the sound is not known"):
        views.sound_overlay(values, encoded)
    with pytest.raises(LensplugError, match="the sound is not known"):
        views.sound_player(encoded)
    assert views.sound_overlay(values, encoded, sound=heard.voice.audio).data
    with pytest.raises(LensplugError, match="has no audio 0"):
        views.sound_overlay(torch.zeros(seen.inputs.tokens.shape[1]), seen.inputs)
    bare = dataclasses.replace(heard.inputs, modality=dataclasses.replace(heard.inputs.modality, timelines={}))
    with pytest.raises(LensplugError, match="no geometry yet"):
        views.sound_overlay(values, bare)


def test_the_player_plays_the_sound(heard):
    body = views.sound_player(heard.inputs).body
    data = base64.b64decode(body.split("base64,")[1].split('"')[0])
    waveform, rate = soundfile.read(io.BytesIO(data))
    assert len(waveform) / rate == pytest.approx(heard.inputs.audio[0][0].duration_s, abs=0.1)


def test_received_attention_draws_the_matrix_and_its_columns(heard):
    fig = views.draw(heard.received)
    matrix = np.asarray(fig.data[0].z, dtype=float)
    expected = heard.received.matrix[0].numpy()
    np.testing.assert_allclose(np.nan_to_num(matrix), expected, atol=5e-4)
    bars = [trace for trace in fig.data if trace.type == "bar"]
    assert [trace.name for trace in bars] == ["text", "audio"]
    drawn = {x: y for trace in bars for x, y in zip(trace.x, trace.y, strict=True)}
    np.testing.assert_allclose([drawn[i] for i in range(len(drawn))], heard.received.values[0].numpy(), atol=5e-5)
    ticks = fig.layout.xaxis4.ticktext
    assert any("audio" in tick for tick in ticks) and len(ticks) <= 40


def test_a_long_matrix_is_pooled_and_says_so(heard):
    size = 600
    long = dataclasses.replace(
        heard.received, values=torch.rand(1, size), count=torch.ones(1, size).long(), matrix=torch.rand(1, size, size),
        modalities=(("text",) * size,), str_tokens=(("w",) * size,),
    )  # fmt: skip
    fig = views.received_attention(long)
    z = np.asarray(fig.data[0].z, dtype=float)
    assert z.shape == (200, 200) and "blocks of 3" in fig.layout.title.text
    assert z[0, 1] == pytest.approx(float(long.matrix[0, :3, 3:6].mean()), abs=1e-3)
    assert len(fig.to_json()) < 2_000_000


def test_comparison_of_heads_has_two_maps_and_their_difference(heard):
    other = dataclasses.replace(heard.heads, mass=heard.heads.mass.flip(1))
    fig = views.draw(analysis.compare(heard.heads, other))
    first, second, difference = (np.asarray(trace.z, dtype=float) for trace in fig.data)
    np.testing.assert_allclose(difference, second - first, atol=2e-4)
    audio = heard.heads.modalities.index("audio")
    np.testing.assert_allclose(first, heard.heads.mean[..., audio].numpy(), atol=1e-4)
    with pytest.raises(LensplugError, match="modality is 'image', this comparison has"):
        views.comparison(analysis.compare(heard.heads, other), modality="image")


def test_comparison_of_tokens_has_bars(heard):
    other = dataclasses.replace(heard.received, values=heard.received.values / 2)
    fig = views.comparison(analysis.compare(heard.received, other), names=("before", "after"))
    before, after, change = fig.data
    assert [before.name, after.name, change.name] == ["before", "after", "after − before"]
    np.testing.assert_allclose(np.array(change.y), -heard.received.values[0].numpy() / 2, atol=2e-5)


def test_ablation_draws_three_confusion_tables(heard):
    own = [analysis.Example(heard.voice.prompt("sound"), "Happy", audio=[heard.voice.audio])]
    result = analysis.modality_ablation(heard.lens, own, "audio", classes=["Happy", "Sad"])
    fig = views.draw(result)
    assert len(fig.data) == 3 and np.asarray(fig.data[0].z).tolist() == [[1, 0], [0, 0]]
    assert "100% right" in fig.layout.annotations[0].text


def test_audio_positions_are_grouped_by_time(heard):
    groups = group_positions(heard.inputs)
    line = heard.inputs.modality.audio_timeline()
    named = [name for name in groups.names if name.endswith(" s]")]
    assert named == [f"[{float(center):.2f} s]" for center in line.center_s]
    assert "L0H0" in views.attention_heads(heard.cache, heard.inputs, layer=0).body
