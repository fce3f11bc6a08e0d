"""Timelines of the Whisper-like families: when a click is heard, the edges of windows, sounds that touch, refusals."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.audio_llamas import sound
from support.audio_relatives import RELATIVES, relative

import lensplug
from lensplug.families import FAMILIES, ProcessedBatch
from lensplug.families.whisper_windows import STACK, WINDOW_MEL, media_layout
from lensplug.media import Media, Sound

WINDOWED = [name for name in RELATIVES if name != "qwen2_audio"]
MASKS = {
    "glmasr": "input_features_mask",
    "qwen2_audio": "feature_attention_mask",
    "audioflamingo3": "input_features_mask",
    "musicflamingo": "input_features_mask",
}


@cache
def family(name: str) -> tuple[Any, Any, Any]:
    """A model, its processor and its lens; the encoder's attention is weak, its convolutions the same in both ways.

    Attention spreads every change over the sound, and a lopsided convolution hears early or late by itself.
    """
    model, processor = relative(name, seed=1)
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if "audio_tower" in parameter and ("out_proj" in parameter or "o_proj" in parameter):
                weight.mul_(0.02)
            elif "audio_tower" in parameter and "conv" in parameter and weight.ndim == 3:
                weight.copy_((weight + weight.flip(-1)) / 2)
    return model, processor, lensplug.wrap(model, processor, check=False)


def change(lens: Any, before: list[np.ndarray], after: list[np.ndarray]) -> tuple[Any, torch.Tensor]:
    """The modality map of a prompt, and how far each position moves where the sounds are changed."""
    first, second = (lens.prepare("when?", audio=[(one, 16000) for one in sounds]) for sounds in (before, after))
    return first.modality, (first.embeds - second.embeds)[0].norm(dim=-1).double()


def repainted(waveform: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    """Other noise in an interval; not the loudest, since the spectrogram is clipped 8 decades below its maximum."""
    first, last = round(start_s * 16000), round(end_s * 16000)
    changed = waveform.copy()
    changed[first:last] = 0.05 * np.random.default_rng(first).standard_normal(last - first)
    return changed


@pytest.mark.parametrize("name", RELATIVES)
def test_clicks_are_heard_when_the_timeline_says(name):
    """On average over clicks of 4 ms at all phases. Half a frame too early or late would be 10 ms."""
    seconds = 29.9 if name == "qwen2_audio" else 59.9
    noise = np.random.default_rng(0)
    waveform = (0.05 * noise.standard_normal(round(seconds * 16000))).astype(np.float32)
    clicks, changed = np.arange(0.5, seconds - 0.4, 0.413), waveform.copy()
    for click in clicks:
        first = round(click * 16000) - 32
        changed[first : first + 64] += (0.05 * noise.standard_normal(64)).astype(np.float32)
    modality, moved = change(family(name)[2], [waveform], [changed])
    away = modality.audio_timeline().center_s.double()[:, None] - torch.from_numpy(clicks)
    weight = (moved[modality.audio_positions()] ** 2)[:, None] * (away.abs() < 0.16)
    late = ((weight * away).sum(dim=0) / weight.sum(dim=0)).mean() * 1000
    print(f"{name}: clicks are heard {float(late):.2f} ms after the timeline says")
    # The projector weighs four stacked frames each as it likes: the middle of one model's position is that uncertain.
    assert abs(float(late)) < (3 if STACK[name] == 4 else 1.5)


@pytest.mark.parametrize("name", WINDOWED)
def test_positions_around_the_edge_of_a_window(name):
    edge, exact = WINDOW_MEL // 2 // STACK[name], 0
    for seed in range(3):
        waveform = sound(31.0, seed)
        for named in (edge - 2, edge - 1, edge, edge + 1):
            line = family(name)[2].prepare("when?", audio=[(waveform, 16000)]).modality.audio_timeline()
            changed = repainted(waveform, float(line.start_s[named]), float(line.end_s[named]))
            modality, moved = change(family(name)[2], [waveform], [changed])
            found = int(moved[modality.audio_positions()].argmax())
            exact += found == named
            assert abs(found - named) <= 1
    assert exact >= 10, exact


@pytest.mark.parametrize("name", ["voxtral", "qwen2_audio"])
def test_each_of_two_sounds_has_its_own_timeline(name):
    for seed in range(4):
        sounds = [sound(0.6, seed), sound(0.9, seed + 50)]
        for index in (0, 1):
            changed = list(sounds)
            changed[index] = repainted(sounds[index], 0.19, 0.27)
            modality, moved = change(family(name)[2], sounds, changed)
            position = modality.audio_positions(index)
            heard = modality.audio_timeline(index).to_seconds(torch.arange(len(position)).float(), bins=600)
            named = int(heard[round(0.23 / modality.audio_timeline(index).duration_s * 600)])
            assert abs(int(moved.argmax()) - int(position[named])) <= 1


def windows(mel: int, name: str) -> list[int]:
    """Columns of sound in each window, as the processors cut."""
    if name == "qwen2_audio":
        return [min(mel, WINDOW_MEL)]
    return [WINDOW_MEL] * (mel // WINDOW_MEL) + [mel % WINDOW_MEL] * (mel % WINDOW_MEL > 0)


def positions(mel: int, name: str) -> int:
    """By transformers' own arithmetic."""
    model, processor, _ = family(name)
    if name == "qwen2_audio":
        return int(model.model.audio_tower._get_feat_extract_output_lengths(torch.tensor(min(mel, WINDOW_MEL)))[1])
    return int(processor._get_audio_token_length(torch.tensor(mel)))


@pytest.mark.parametrize("name", MASKS)
@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.lists(st.integers(7, 2999) | st.integers(2990, 9010), max_size=3), min_size=1, max_size=3))
def test_any_sounds_of_any_lengths_have_as_many_positions_as_transformers_says(name, batch):
    _, _, lens = family(name)
    counts = [[positions(mel, name) for mel in own] for own in batch]
    rows = [one for own in batch for mel in own for one in windows(mel, name)]
    mask = (torch.arange(WINDOW_MEL) < torch.tensor(rows, dtype=torch.long)[:, None]).long()
    seconds = [[mel / 100 for mel in own] for own in batch]
    sounds = tuple(tuple(Sound(torch.zeros(mel), 100) for mel in own) for own in batch)
    for given_media in (Media(audio=sounds), Media()):
        layout = media_layout(ProcessedBatch(lens.hf_model.config, {MASKS[name]: mask}, {"audio": counts}, given_media))
        assert layout.lengths["audio"] == counts
        for (example, index), line in layout.timelines.items():
            assert len(line) == counts[example][index]
            assert torch.equal(line.end_s[:-1], line.start_s[1:]) and float(line.start_s[0]) == 0
            assert not line.padding.any()
            known = min(seconds[example][index], 30.0) if name == "qwen2_audio" else seconds[example][index]
            if not given_media.audio:  # a few columns in a last window that has no position are not counted
                assert known - 0.07 < line.duration_s < known + 1e-6


@pytest.mark.parametrize("name", MASKS)
def test_sounds_that_touch_are_told_apart_by_the_mask(name):
    # Where every row is a sound, a full one ends like any other.
    mel = [WINDOW_MEL if name == "qwen2_audio" else 120, 90, 300]
    counts = [positions(one, name) for one in mel]
    mask = (torch.arange(WINDOW_MEL) < torch.tensor(mel)[:, None]).long()
    layout = media_layout(
        ProcessedBatch(family(name)[0].config, {MASKS[name]: mask}, {"audio": [[sum(counts[:2])], counts[2:]]})
    )
    assert layout.lengths["audio"] == [counts[:2], counts[2:]]
    assert [line.duration_s for line in layout.timelines.values()] == pytest.approx([one / 100 for one in mel])


@pytest.mark.parametrize("name", [name for name in MASKS if name != "musicflamingo"])  # which refuses it itself
def test_a_sound_too_short_for_a_position_is_refused(name):
    """Hugging Face answers without it and says nothing."""
    audio = [[(sound(0.5), 16000)], [(sound(0.02, 1), 16000)]]
    for given_audio in (audio, audio[::-1]):
        with pytest.raises(
            lensplug.LensplugError, match=r"is 0.02 s long and gets no position at all.*needs 0.0[37] s"
        ):
            family(name)[2].prepare(["one", "two"], audio=given_audio)


def test_sounds_that_touch_without_a_mask_are_refused_not_taken_for_one():
    _, processor, lens = family("voxtral")
    audio = [(sound(0.5), 16000), (sound(0.9, 1), 16000)]
    with pytest.raises(lensplug.LensplugError, match="example 0 has 2 sound.*those of 1: put a word between"):
        lens.prepare("which? " + 2 * processor.audio_token, audio=audio, chat_template=False)


def test_a_voxtral_that_stacks_other_than_four_frames_has_no_known_times():
    outputs = {"input_features": torch.zeros(1, 80, WINDOW_MEL)}
    with pytest.raises(lensplug.LensplugError, match="750 audio placeholders for 1 windows of 30 s, expected 375"):
        media_layout(ProcessedBatch(family("voxtral")[0].config, outputs, {"audio": [[750]]}))


def test_placeholders_that_the_model_expands_itself_are_refused():
    """Qwen2-Audio's older form: one placeholder for each sound, so that positions are not those of the tokens."""
    _, processor, lens = family("qwen2_audio")
    outputs = dict(processor(text="when? <|AUDIO|> now", audio=[sound(0.5)], sampling_rate=16000, return_tensors="pt"))
    audio = (outputs["input_ids"] == processor.audio_token_id)[0]
    keep = ~audio | (audio.cumsum(dim=0) == 1)
    outputs |= {key: outputs[key][:, keep] for key in ("input_ids", "attention_mask")}
    with pytest.raises(lensplug.LensplugError, match="merges by a rule of its own, and positions cannot be labelled"):
        lens.encode(outputs)


def test_a_family_without_a_file_is_labelled_and_has_no_timeline(monkeypatch):
    monkeypatch.delitem(FAMILIES, "qwen2_audio")
    modality = family("qwen2_audio")[2].prepare("when?", audio=[(sound(0.5), 16000)]).modality
    assert len(modality.audio_positions()) == 12 and modality.audio_timeline() is None
