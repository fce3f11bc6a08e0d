"""The voices: the same seed makes the same, and what is said of a voice is true of its waveform."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lensplug.tiny.voices import (
    EMOTIONS,
    PITCHES,
    PLACES,
    QUESTIONS,
    SAMPLING_RATE,
    WORDS,
    every_text,
    make_voice,
    topics,
)


def test_the_same_seed_makes_the_same_voice():
    first, second, other = (make_voice(random.Random(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.waveform, second.waveform) and first.transcript == second.transcript
    assert not np.array_equal(first.waveform[:100], other.waveform[:100])


@pytest.mark.parametrize("emotion", EMOTIONS)
@pytest.mark.parametrize("place", PLACES)
def test_the_voice_is_where_it_is_said_to_be(emotion, place):
    rng = random.Random(3)
    for _ in range(5):
        voice = make_voice(rng, emotion=emotion, place=place)
        assert voice.waveform.dtype == np.float32 and np.abs(voice.waveform).max() <= 1
        first, last = (round(t * SAMPLING_RATE) for t in (voice.start_s, voice.end_s))
        inside, outside = voice.waveform[first:last], np.r_[voice.waveform[:first], voice.waveform[last:]]
        assert np.square(inside).mean() > 2 * np.square(outside).mean()
        middle = (voice.start_s + voice.end_s) / 2 / (len(voice.waveform) / SAMPLING_RATE)
        assert min(PLACES, key=lambda name: abs(PLACES[name] - middle)) == place


@pytest.mark.parametrize("pitch", PITCHES)
def test_the_pitch_is_that_of_the_sound(pitch):
    """By autocorrelation of the voiced part of neutral voices, whose pitch is level."""
    rng = random.Random(4)
    for _ in range(8):
        voice = make_voice(rng, emotion="neutral", pitch=pitch)
        part = voice.waveform[round(voice.start_s * SAMPLING_RATE) : round(voice.end_s * SAMPLING_RATE)]
        correlation = np.correlate(part, part, "full")[len(part) :]
        lags = np.arange(1, len(part))
        allowed = (lags > SAMPLING_RATE / 300) & (lags < SAMPLING_RATE / 80)
        own = correlation[: len(lags)][allowed]
        # The shortest lag of nearly the largest correlation: twice the period fits nearly as well.
        found = SAMPLING_RATE / lags[allowed][np.flatnonzero(own > 0.85 * own.max())[0]]
        assert min(PITCHES, key=lambda name: abs(np.log(PITCHES[name] / found))) == pitch


def test_loudness_tells_sad_from_angry():
    rng = random.Random(5)
    loud = {e: np.mean([np.abs(make_voice(rng, emotion=e).waveform).max() for _ in range(10)]) for e in EMOTIONS}
    assert loud["sad"] < loud["neutral"] < loud["happy"] < loud["angry"]


def test_answers_by_hand():
    voice = make_voice(random.Random(6), emotion="angry", words="sad", place="late", pitch="low", transcript=True)
    right = {"sound": "Angry", "words": "Sad", "feeling": "Angry", "agreement": "No", "time": "Late", "pitch": "Low"}
    assert {topic: voice.answer(topic) for topic in topics(voice)} == right
    assert voice.answer("feeling", heard=False) == "Sad" and topics(voice, heard=False) == ("words", "feeling")
    assert voice.transcript is not None and any(sentence in voice.transcript for sentence in WORDS["sad"])
    assert voice.prompt("sound") == f'The speaker says "{voice.transcript}". How does the speaker sound?'
    neutral = make_voice(random.Random(7), emotion="neutral", words="happy", transcript=True)
    assert neutral.answer("feeling") == "Happy" and neutral.answer("agreement") == "No"
    silent = make_voice(random.Random(8), emotion="sad", transcript=False)
    assert silent.prompt("sound") == QUESTIONS["sound"] and "words" not in topics(silent)
    assert silent.answer("feeling") == "Sad" and topics(silent, heard=False) == ()


def test_every_text_is_in_the_corpus_of_the_tokenizer():
    rng, corpus = random.Random(9), "\n".join(every_text())
    for _ in range(50):
        voice = make_voice(rng, transcript=True)
        for topic in topics(voice):
            assert voice.transcript is not None and voice.transcript in corpus
            assert QUESTIONS[topic] in corpus and voice.answer(topic) in corpus
