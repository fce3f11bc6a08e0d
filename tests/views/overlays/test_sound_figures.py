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
from lensplug.positions.groups import group_positions
from lensplug.views.style import MODALITY_COLORS, visible


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
    ticks = fig.layout.xaxis6.ticktext
    assert [tick for tick in ticks if tick.startswith("audio ")] == [f"audio {i}" for i in range(10)]
    words = {at: tick for at, tick in labelled(fig) if not tick.startswith("audio ")}
    assert words and all(words[at] == visible(heard.inputs.str_tokens[0][at]) for at in words)
    assert len(ticks) <= 36
    one = views.received_attention(heard.received, top=1)
    (best,) = heard.received.top(1)
    media = [at for at, _, _ in heard.received.of("audio")]
    assert [at for at, _ in labelled(one)] == sorted({best[0], *media})


def labelled(fig):
    return list(zip(fig.layout.xaxis6.tickvals, fig.layout.xaxis6.ticktext, strict=True))


def test_bands_of_modality_stand_on_both_sides(heard):
    fig = views.received_attention(heard.received)
    upright, flat = (np.asarray(trace.z) for trace in fig.data[1:3])
    order = list(MODALITY_COLORS)
    expected = [order.index(name) for name in heard.received.modalities[0]]
    assert upright[:, 0].tolist() == expected == flat[0].tolist()
    assert "audio" in heard.received.modalities[0]


def test_received_attention_is_drawn_where_it_is_in_a_padded_batch(heard):
    lens = heard.lens
    inputs = lens.prepare([heard.voice.prompt("sound"), "Hi"], audio=[[heard.voice.audio]] * 2)
    _, cache = lens.run_with_cache(inputs)
    result = analysis.received_attention(cache, modality=inputs.modality, str_tokens=inputs.str_tokens)
    fig = views.received_attention(result, example=1)
    kept = inputs.attention_mask[1].nonzero()[:, 0].tolist()
    assert kept[0] > 0
    drawn = {x: y for trace in fig.data if trace.type == "bar" for x, y in zip(trace.x, trace.y, strict=True)}
    assert sorted(drawn) == kept == list(fig.data[0].x)
    np.testing.assert_allclose([drawn[i] for i in kept], result.values[1, kept].numpy(), atol=5e-5)
    with pytest.raises(LensplugError, match="example is 2, there are 2"):
        views.received_attention(result, example=2)


def test_names_come_from_the_inputs_where_the_result_has_none(heard, seen):
    with_texts = analysis.received_attention(heard.cache)
    bare = dataclasses.replace(with_texts, str_tokens=(("",) * with_texts.values.shape[1],))
    unnamed = views.received_attention(bare)
    assert not any(trace.showlegend for trace in unnamed.data if trace.type == "bar")
    assert all(int(tick) == at for at, tick in labelled(unnamed))
    named = views.received_attention(bare, inputs=heard.inputs)
    assert labelled(named) == labelled(views.received_attention(heard.received))
    with pytest.raises(LensplugError, match="give the inputs that were run"):
        views.received_attention(bare, inputs=seen.inputs)


def test_a_long_matrix_is_pooled_and_says_so(heard):
    size = 600
    long = dataclasses.replace(
        heard.received, values=torch.rand(1, size), count=torch.ones(1, size).long(), matrix=torch.rand(1, size, size),
        modalities=(("text",) * size,), str_tokens=(("w",) * size,), visible=None,
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
    np.testing.assert_allclose(first, heard.heads.average()[..., audio].numpy(), atol=1e-4)
    with pytest.raises(LensplugError, match="modality is 'image', this comparison has"):
        views.comparison(analysis.compare(heard.heads, other), modality="image")


def test_comparison_of_rollouts_and_lenses_are_maps(heard):
    both = analysis.attention_rollout(heard.cache)
    other = dataclasses.replace(both, values=both.values.flip(0) * 0.5)
    fig = views.draw(analysis.compare(both, other))
    np.testing.assert_allclose(np.asarray(fig.data[0].z), both.values[0].numpy(), atol=5e-5)
    np.testing.assert_allclose(np.asarray(fig.data[2].z), -both.values[0].numpy() / 2, atol=5e-5)
    one = analysis.attention_rollout(heard.cache, rows=-1)
    assert views.draw(analysis.compare(one, one)).data[0].type == "bar"
    lens = analysis.logit_lens(heard.cache, positions=[-2, -1], target=5)
    fig = views.draw(analysis.compare(lens, lens))
    np.testing.assert_allclose(np.asarray(fig.data[1].z), lens.log_probability[0].numpy(), atol=5e-5)
    assert list(fig.data[1].y) == ["embed", "0", "1", "2", "3", "4", "5"]
    with pytest.raises(LensplugError, match="example is 1, the comparison has 1"):
        views.comparison(analysis.compare(both, other), example=1)


def test_a_large_comparison_stays_small(heard):
    size = 600
    provenance = analysis.attention_rollout(heard.cache).provenance
    values, rows = torch.rand(1, size, size), torch.arange(size)[None]
    large = analysis.compare(
        *[
            analysis.GradientRollout(values=values * scale, relevance=values * scale, rows=rows, provenance=provenance)
            for scale in (1, 2)
        ]
    )
    fig = views.draw(large)
    assert np.asarray(fig.data[0].z).shape == (120, 120) and "blocks of 5" in fig.layout.title.text
    assert np.asarray(fig.data[2].z)[1, 2] == pytest.approx(float(values[0, 5:10, 10:15].mean()), abs=1e-3)
    assert list(fig.data[0].x) == list(fig.data[0].y) == list(range(2, size, 5))
    assert len(fig.to_json()) < 1_000_000


def test_comparison_of_ablations_names_bars_by_what_is_short(heard):
    asked = {"sound": "Happy", "words": "Sad"}
    own = [
        analysis.Example(heard.voice.prompt(kind), answer, audio=[heard.voice.audio]) for kind, answer in asked.items()
    ]
    result = analysis.modality_ablation(heard.lens, own, "audio")
    other = dataclasses.replace(result, log_probability=result.log_probability - 1)
    fig = views.draw(analysis.compare(result, other))
    assert fig.layout.xaxis2.ticktext[:2] == ("0, with, Happy", "0, without, Happy")
    np.testing.assert_allclose(np.asarray(fig.data[2].y), -1, atol=1e-4)


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
    groups = group_positions(heard.inputs.modality)
    line = heard.inputs.modality.audio_timeline()
    named = [name for name in groups.names if name.endswith(" s]")]
    assert named == [f"[{float(center):.2f} s]" for center in line.center_s]
    assert "L0H0" in views.attention_heads(heard.cache, heard.inputs, layer=0).body
