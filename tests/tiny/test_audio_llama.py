"""The embedded audio-LLaMA: it loads offline, answers right on unseen voices, and can be made again."""

import random
import runpy

import numpy as np
import pytest
import torch
import transformers

import lensplug
from lensplug.audio_llama import AudioLlamaForConditionalGeneration, AudioLlamaProcessor
from lensplug.tiny import CHECKPOINTS
from lensplug.tiny.voices import QUESTIONS, make_voice, topics

UNSEEN = 1_000_003  # training draws from seed 0


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.audio_llama()


def test_it_is_of_the_promised_size(lens):
    assert type(lens.hf_model) is AudioLlamaForConditionalGeneration and type(lens.processor) is AudioLlamaProcessor
    assert type(lens.hf_model.model.audio_tower) is transformers.Wav2Vec2Model
    assert lens.model.cfg.n_layers >= 6 and lens.model.cfg.n_heads >= 6
    assert 600_000 < sum(p.numel() for p in lens.hf_model.parameters()) < 1_200_000
    weights = CHECKPOINTS / "audio-llama" / "model.safetensors"
    assert weights.stat().st_size < 3_000_000


def right(lens, prompts, voices, answers, heard=True):
    batch = lens.prepare(prompts, **({"audio": [[voice.audio] for voice in voices]} if heard else {}))
    written = lens.generate(batch, max_new_tokens=4).text
    return [one == expected for one, expected in zip(written, answers, strict=True)]


def test_at_least_95_percent_right_on_unseen_voices(lens):
    rng = random.Random(UNSEEN)
    found: dict[str, list[bool]] = {topic: [] for topic in QUESTIONS}
    for _ in range(4):
        voices = [make_voice(rng) for _ in range(30)]
        for topic in QUESTIONS:
            own = [voice for voice in voices if topic in topics(voice)]
            found[topic] += right(lens, [v.prompt(topic) for v in own], own, [v.answer(topic) for v in own])
    rates = {topic: sum(values) / len(values) for topic, values in found.items()}
    total = [value for values in found.values() for value in values]
    print(f"right on {len(total)} unseen questions: {sum(total) / len(total):.1%}, {rates}")
    assert sum(total) / len(total) >= 0.95 and min(rates.values()) >= 0.9, rates


def test_without_sound_and_without_words(lens):
    """What the sound alone tells it cannot know, and of what needs both it knows what the words say."""
    rng = random.Random(UNSEEN + 1)
    voices = [make_voice(rng, transcript=True) for _ in range(80)]
    prompts = [voice.prompt("feeling") for voice in voices]
    by_words = [voice.answer("feeling", heard=False) for voice in voices]
    unheard = np.mean(right(lens, prompts, voices, by_words, heard=False))
    sounds = [voice.answer("sound") for voice in voices]
    guessed = np.mean(right(lens, [v.prompt("sound") for v in voices], voices, sounds, heard=False))
    wordless = np.mean(right(lens, [QUESTIONS["sound"]] * 80, voices, sounds))
    unread = np.mean(right(lens, [QUESTIONS["words"]] * 80, voices, [v.answer("words") for v in voices]))
    print(f"feeling by words alone {unheard:.0%}; sound without the sound {guessed:.0%}, without words {wordless:.0%};")
    print(f"words without words {unread:.0%}")
    assert unheard > 0.95 and wordless > 0.95 and guessed < 0.5 and unread < 0.6


def test_any_sampling_rate_gives_the_same_answer(lens):
    voice = make_voice(random.Random(UNSEEN + 2), emotion="happy", transcript=False)
    sound = lensplug.media.load_sound(voice.audio)
    for rate in (16000, 44100):
        inputs = lens.prepare(voice.prompt("sound"), audio=[sound.at_rate(rate)])
        assert lens.generate(inputs).text == ["Happy"]
        assert inputs.modality.audio_timeline().duration_s == pytest.approx(sound.duration_s, abs=1e-3)


def test_the_training_command_writes_a_folder_that_loads(tmp_path, monkeypatch):
    out = tmp_path / "made"
    options = ["audio-llama", "--steps", "2", "--batch-size", "9", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["lensplug.tiny.train", *options])
    with torch.random.fork_rng():
        runpy.run_module("lensplug.tiny.train", run_name="__main__")  # as `python -m` does
    lens = lensplug.load(out, device="cpu", dtype="float32")
    voice = make_voice(random.Random(0))
    assert lens.check(lens.prepare(voice.prompt("sound"), audio=[voice.audio])).agrees
