"""Qwen2.5-Omni: what a prompt of image, video and sound has where, and when; sounds that are inside videos."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging import version
from support.image_families import lens as silent_lens
from support.models import scene
from support.omni import thinker_with_processor
from support.painted import painted
from support.qwen3_vl_media import frames
from transformers import WhisperFeatureExtractor

import lensplug
from lensplug import views
from lensplug.families.qwen_omni import timeline

QUESTION, RATE = "What ?", 16000
NOW_GIVEN = pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.24"), reason="sounds of videos were given otherwise"
)


@cache
def lens(chunk_s: int = 60) -> Any:
    """Chunks of 400 ms. The encoders' attention is off, and convolutions are the same in both ways."""
    model, processor = thinker_with_processor()
    processor.feature_extractor = WhisperFeatureExtractor(80, chunk_length=chunk_s)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ("visual." in name or "audio_tower." in name) and ("out_proj" in name or "attn.proj" in name):
                weight.zero_()
            elif "audio_tower.conv" in name and weight.ndim == 3:
                weight.copy_((weight + weight.flip(-1)) / 2)
    return lensplug.wrap(model, processor, check=False)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return 0.05 * np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32)


def mixed(picture: Any, video: Any, sound: np.ndarray) -> Any:
    return lens().prepare(QUESTION, images=[picture], videos=[(video, 2.0)], audio=[(sound, RATE)])


def test_each_medium_of_a_mixed_prompt_has_its_own_geometry():
    """Painting one changes the positions that its geometry names, and of the others none."""
    picture, video, sound = np.asarray(scene(40, 60)), frames(4, 0), noise(1.7)
    before = mixed(picture, video, sound)
    modality = before.modality
    grid, clip, line = modality.image_grid(), modality.video_grid(), modality.audio_timeline()
    assert grid is not None and clip is not None and line is not None
    assert clip.times_s is not None and clip.times_s.tolist() == [0, 0.5, 1, 1.5]
    other_picture, other_video, other_sound = picture.copy(), video.clone(), sound.copy()
    other_picture[:8, :8] ^= 255
    other_video[3, :4, :6] ^= 255
    first, last = (round(float(edge[20]) * RATE) for edge in (line.start_s, line.end_s))
    other_sound[first:last] = noise(1.7, 1)[first:last]
    meant = {
        "image": (mixed(other_picture, video, sound), grid.overlap([0, 0, 8, 8])),
        "video": (mixed(picture, other_video, sound), clip.overlap([0, 0, 6, 4], frame=3)),
        "audio": (mixed(picture, video, other_sound), (torch.arange(len(line)) == 20).float()),
    }
    for kind, (after, overlap) in meant.items():
        change = (after.embeds - before.embeds)[0].norm(dim=1)
        at = modality.mask(kind)[0]
        assert not bool((change[~at] > 1e-4).any()), kind
        assert float(overlap[change[at].argmax()]) > 0, kind


def test_all_three_overlays_of_a_mixed_prompt():
    inputs = mixed(scene(40, 60), frames(4, 0), noise(1.7))
    modality, values = inputs.modality, torch.zeros(inputs.tokens.shape[1])
    grid, clip, line = modality.image_grid(), modality.video_grid(), modality.audio_timeline()
    values[modality.image_positions()[7]] = 0.3
    values[modality.video_positions()[-1]] = 0.5
    values[modality.audio_positions()[20]] = 0.2
    x, y = ((grid.boxes[7, :2] + grid.boxes[7, 2:]) / 2).tolist()
    assert painted(views.image_overlay(values, inputs).data[0], x, y) == pytest.approx(0.3)
    x, y = ((clip.boxes[-1, :2] + clip.boxes[-1, 2:]) / 2).tolist()
    traces = views.video_overlay(values, inputs).data
    assert [painted(trace, x, y) for trace in traces] == pytest.approx([0, 0, 0.5, 0.5])
    bars = views.sound_overlay(values, inputs).data[0]
    assert int(np.argmax(bars.y)) == 20 and max(bars.y) == pytest.approx(0.2)
    assert bars.x[20] == pytest.approx(float(line.center_s[20]))


def test_clicks_are_heard_when_the_timeline_says():
    """On average over clicks of 4 ms at all phases. Half a frame too early or late would be 10 ms."""
    seconds = 19.9
    sound = noise(seconds)
    clicks, changed = np.arange(0.5, seconds - 0.4, 0.413), sound.copy()
    for click in clicks:
        first = round(click * RATE) - 32
        changed[first : first + 64] += noise(0.004, round(1000 * click))
    first, second = (lens().prepare("What ?", audio=[(one, RATE)]) for one in (sound, changed))
    moved = (first.embeds - second.embeds)[0].norm(dim=-1).double()
    away = first.modality.audio_timeline().center_s.double()[:, None] - torch.from_numpy(clicks)
    weight = (moved[first.modality.audio_positions()] ** 2)[:, None] * (away.abs() < 0.16)
    late = float(((weight * away).sum(dim=0) / weight.sum(dim=0)).mean() * 1000)
    print(f"clicks are heard {late:.2f} ms after the timeline says")
    assert abs(late) < 1.5


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(3, 30000), st.sampled_from([40, 200]))
def test_a_sound_of_any_length_has_as_many_positions_as_transformers_says(columns, chunk):
    modules = lens().hf_model.named_modules()
    tower = next(module for name, module in modules if name.endswith("audio_tower"))
    line = timeline(columns, chunk)
    assert len(line) == int(tower._get_feat_extract_output_lengths(torch.tensor(columns))[1])
    assert torch.allclose(line.end_s[:-1], line.start_s[1:]) and float(line.start_s[0]) == 0
    assert abs(float(line.end_s[-1]) - line.duration_s) < 0.04


def test_a_sound_that_is_cut_says_what_is_heard_and_another_sound_is_noticed():
    with pytest.warns(UserWarning, match=r"the model hears the first 4.0 s of the 5.5 s of sound 0"):
        inputs = lens(4).prepare("What ?", audio=[(noise(5.5), RATE)])
    line = inputs.modality.audio_timeline()
    assert (line.duration_s, line.heard_s, len(line)) == (5.5, 4.0, 100)
    outputs = dict(lens().prepare("What ?", audio=[(noise(1.3), RATE)]).model_inputs)
    assert lens().encode(outputs).modality.audio_timeline().duration_s == pytest.approx(1.3)
    with pytest.raises(lensplug.LensplugError, match="is 2.50 s long, and the processor saw one of 1.30 s"):
        lens().encode(outputs, audio=[(noise(2.5), RATE)])


@NOW_GIVEN
def test_the_sound_of_a_video_stands_among_its_positions():
    sound, video = noise(4.0), frames(8, 0)
    outputs = lens().processor(
        text=["<|vision_bos|><|VIDEO|><|vision_eos|> What ?"], videos=[video], audio=[sound],
        audio_from_video_indices=[0], load_audio_from_video=True, return_tensors="pt",
    )  # fmt: skip
    with pytest.raises(lensplug.LensplugError, match="the model was not told.*'use_audio_in_video': True"):
        lens().encode(outputs, videos=[video], audio=[(sound, RATE)])
    told = {**outputs, "use_audio_in_video": True}
    before = lens().encode(told, videos=[video], audio=[(sound, RATE)])
    modality = before.modality
    pieces = [(span.modality, span.stop - span.start) for span in modality.spans if span.media_index is not None]
    assert pieces == [("video", 12), ("audio", 50), ("video", 12), ("audio", 50)]
    assert lens().check(before).agrees
    line, grid, at = modality.audio_timeline(), modality.video_grid(), modality.audio_positions()
    assert line is not None and grid is not None and len(line) == len(at) == 100
    changed = sound.copy()
    first, last = (round(float(edge[70]) * RATE) for edge in (line.start_s, line.end_s))
    changed[first:last] = noise(4.0, 1)[first:last]
    features = lens().processor.feature_extractor(changed, sampling_rate=RATE, return_tensors="pt").input_features
    after = lens().encode({**told, "input_features": features}, videos=[video], audio=[(changed, RATE)])
    assert int((after.embeds - before.embeds)[0].norm(dim=1).argmax()) == int(at[70])


@pytest.mark.skipif(not hasattr(transformers, "Qwen3OmniMoeProcessor"), reason="this transformers has no Qwen3-Omni")
@pytest.mark.parametrize("seconds", [0.1, 0.99, 1.01, 2.5, 35.3])
def test_qwen3_omni_hears_a_sound_whole_in_chunks_of_a_second(seconds):
    """One change moves the position that the timeline names, and no other chunk."""
    wrapped, sound = silent_lens("qwen3-omni", attention=False), noise(seconds)
    before = wrapped.prepare("What ?", audio=[(sound, RATE)])
    line, at = before.modality.audio_timeline(), before.modality.audio_positions()
    assert line is not None and line.heard_s is None and len(line) == len(at)
    assert line.duration_s == pytest.approx(seconds)
    assert float(line.start_s[0]) == 0 and torch.allclose(line.end_s[:-1], line.start_s[1:], atol=1e-5)
    assert float(line.end_s[-1]) > seconds - 0.04
    named, changed = len(line) // 2, sound.copy()
    first, last = (round(float(edge[named]) * RATE) for edge in (line.start_s, line.end_s))
    changed[first:last] = noise(seconds, 1)[first:last]
    after = wrapped.prepare("What ?", audio=[(changed, RATE)])
    moved = (after.embeds - before.embeds)[0].norm(dim=1)
    assert abs(int(moved[at].argmax()) - named) <= 1
    with pytest.raises(lensplug.LensplugError, match="s long, and the processor saw one of"):
        wrapped.encode(dict(before.model_inputs), audio=[(noise(seconds + 1), RATE)])


@pytest.mark.skipif(not hasattr(transformers, "Qwen3OmniMoeProcessor"), reason="this transformers has no Qwen3-Omni")
@NOW_GIVEN
def test_the_sound_of_a_video_of_qwen3_omni_stands_between_its_frames(recwarn):
    wrapped, sound, video = silent_lens("qwen3-omni", attention=False), noise(4.0), frames(8, 0)
    outputs = wrapped.processor(
        text=["<|vision_bos|><|VIDEO|><|vision_eos|> What ?"], videos=[video], audio=[sound],
        audio_from_video_indices=[0], load_audio_from_video=True, return_tensors="pt",
    )  # fmt: skip
    inputs = wrapped.encode({**outputs, "use_audio_in_video": True}, videos=[video], audio=[(sound, RATE)])
    modality = inputs.modality
    pieces = [span.modality for span in modality.spans if span.media_index is not None]
    assert pieces[:4] == ["video", "audio", "video", "audio"] and wrapped.check(inputs).agrees
    line, grid = modality.audio_timeline(), modality.video_grid()
    assert line is not None and grid is not None and (len(line), grid.n_frames) == (52, 8)
    assert not [warning for warning in recwarn if "not those that the processor saw" in str(warning.message)]


def test_the_published_chunk_of_two_seconds():
    inputs = silent_lens("qwen2.5-omni").prepare("What ?", audio=[(noise(5.0), RATE), (noise(2.1, 1), RATE)])
    for index, (count, seconds) in enumerate(((125, 5.0), (52, 2.1))):
        line = inputs.modality.audio_timeline(index)
        assert line is not None and (len(line), line.duration_s) == (count, seconds)
        assert float(line.end_s[49]) == 2.0
