"""Voices: sounds that a speaker could make, and questions whose answers are known.

The data of the tiny audio-LLaMA. A voice is a carrier of harmonics, in syllables, somewhere in a noisy
recording; pitch contour, loudness, tempo and roughness make it sound happy, sad, angry or neutral. Beside
it stands a transcript whose words agree with the sound, disagree with it, or say nothing. Some questions
need the sound (how does the speaker sound, when, how high), one needs the words, and two need both.
Everything follows from the random generator: the same seed makes the same voice. Use it to make inputs
whose true answer, and whose true place in seconds, you know; it says nothing about natural speech.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

SAMPLING_RATE = 8000
EMOTIONS = ("happy", "sad", "angry", "neutral")
PLACES = {"early": 0.24, "middle": 0.5, "late": 0.76}
"""The middle of the speech, as a fraction of the recording."""
PITCHES = {"high": 215.0, "low": 115.0}
"""Fundamental frequency of the resting voice, in Hz."""

WORDS = {
    "happy": (
        "we won the game", "i love this song", "the party was great", "she said yes", "what a lovely day",
        "i got the job", "my friend is smiling", "this cake is delicious",
    ),
    "sad": (
        "we lost the game", "i miss this song", "the party was lonely", "she said goodbye", "what a gloomy day",
        "i lost the job", "my friend is crying", "this grave is cold",
    ),
    "angry": (
        "they stole the game", "i hate this song", "the party was ruined", "she lied again", "what a stupid day",
        "i quit the job", "my friend is cheating", "this bill is outrageous",
    ),
    "neutral": (
        "we watched the game", "i know this song", "the party was monday", "she said something", "what a long day",
        "i described the job", "my friend is waiting", "this box is square",
    ),
}  # fmt: skip
"""What the words can say, by what they say."""
BEFORE = ("", "well ", "oh ", "listen ")
AFTER = ("", " today", " my dear", " once more")

QUESTIONS = {
    "sound": "How does the speaker sound?",
    "words": "What do the words say?",
    "feeling": "How does the speaker feel?",
    "agreement": "Do voice and words agree?",
    "time": "When does the speaker speak?",
    "pitch": "Is the voice high or low?",
}
"""Topic -> the question. "sound", "time" and "pitch" need the sound; "words" the words; the others both."""
NEEDS_WORDS = ("words", "agreement")


@dataclass(frozen=True)
class Voice:
    """One recording, its transcript, and the correct answers about both."""

    waveform: np.ndarray
    """float32, -1 to 1, one channel."""
    emotion: str
    """How it sounds."""
    place: str
    pitch: str
    start_s: float
    end_s: float
    """When the speech starts and ends, in seconds."""
    transcript: str | None
    words: str | None
    """What the transcript says: one of `EMOTIONS`; None without a transcript."""

    @property
    def audio(self) -> tuple[np.ndarray, int]:
        """Waveform and sampling rate, as `lens.prepare` takes them."""
        return self.waveform, SAMPLING_RATE

    def answer(self, topic: str, *, heard: bool = True) -> str:
        """The one capitalised word that is right.

        The speaker feels what the voice says; where the voice is neutral, or not heard, what the words say.

        Args:
            topic: A key of `QUESTIONS`.
            heard: Whether the prompt has the sound.
        """
        emotion = self.emotion if heard else "neutral"
        facts = {
            "sound": emotion,
            "words": self.words,
            "feeling": emotion if emotion != "neutral" else self.words or "neutral",
            "agreement": "yes" if emotion == self.words else "no",
            "time": self.place,
            "pitch": self.pitch,
        }
        return str(facts[topic]).capitalize()

    def prompt(self, topic: str) -> str:
        """The question about `topic`, behind the transcript where there is one."""
        transcript_sentence = "" if self.transcript is None else f'The speaker says "{self.transcript}". '
        return transcript_sentence + QUESTIONS[topic]


def make_voice(
    rng: random.Random,
    *,
    emotion: str | None = None,
    place: str | None = None,
    pitch: str | None = None,
    words: str | None = None,
    transcript: bool | None = None,
    duration_s: float | None = None,
) -> Voice:
    """Make one voice; what is not given is chosen by `rng`.

    Args:
        rng: The source of every choice.
        emotion: Emotion of the sound, one of `EMOTIONS`.
        place: Place of the speech in the recording, a key of `PLACES`.
        pitch: A key of `PITCHES`.
        words: What the transcript says, one of `EMOTIONS`; the same as the sound in a third of all cases.
        transcript: Whether there is one; in four of five cases.
        duration_s: Length of the recording.
    """
    emotion = emotion or rng.choice(EMOTIONS)
    place = place or rng.choice(tuple(PLACES))
    pitch = pitch or rng.choice(tuple(PITCHES))
    words = words or (emotion if rng.random() < 1 / 3 else rng.choice(EMOTIONS))
    has_transcript = rng.random() < 0.8 if transcript is None else transcript
    spoken_text = rng.choice(BEFORE) + rng.choice(WORDS[words]) + rng.choice(AFTER)
    duration = duration_s or rng.uniform(1.8, 3.0)
    length = duration * rng.uniform(0.34, 0.42)
    start = duration * PLACES[place] - length / 2 + duration * rng.uniform(-0.03, 0.03)
    start = min(max(start, 0.0), duration - length)
    waveform = _recording(rng, duration, start, _speech(rng, emotion, PITCHES[pitch], length))
    return Voice(
        waveform=waveform,
        emotion=emotion,
        place=place,
        pitch=pitch,
        start_s=start,
        end_s=start + length,
        transcript=spoken_text if has_transcript else None,
        words=words if has_transcript else None,
    )


def topics(voice: Voice, *, heard: bool = True) -> tuple[str, ...]:
    """The questions that can be asked about a voice; without the sound, those that the words answer."""
    if not heard:
        return ("words", "feeling") if voice.transcript is not None else ()
    return tuple(topic for topic in QUESTIONS if voice.transcript is not None or topic not in NEEDS_WORDS)


def every_text() -> list[str]:
    """Every piece of prompt and answer that there is: the corpus of the tiny tokenizer."""
    sentences = [
        f'The speaker says "{b}{w}{a}". '
        for sentences in WORDS.values()
        for w in sentences
        for b in BEFORE
        for a in AFTER
    ]
    answers = [word.capitalize() for word in (*EMOTIONS, *PLACES, *PITCHES, "yes", "no")]
    return sentences + list(QUESTIONS.values()) + answers


def _speech(rng: random.Random, emotion: str, pitch: float, length: float) -> np.ndarray:
    """The voice alone: harmonics under a spectral tilt, cut into syllables."""
    noise = np.random.default_rng(rng.getrandbits(32))
    time = np.arange(int(length * SAMPLING_RATE)) / SAMPLING_RATE
    along = time / length
    tempo, loudness, tilt = {
        "happy": (7.0, 0.55, 1.0), "sad": (3.0, 0.22, 1.8), "angry": (6.0, 0.8, 0.5), "neutral": (4.5, 0.4, 1.2),
    }[emotion]  # fmt: skip
    contour = {
        "happy": 1.0 + 0.25 * along + 0.16 * np.sin(2 * math.pi * 3 * along),  # rising, in waves
        "sad": 1.0 - 0.28 * along,  # falling
        "angry": 1.05 + 0.03 * noise.standard_normal(len(time)).cumsum() / math.sqrt(len(time)),  # held, unsteady
        "neutral": 1.0 + 0.0 * along,  # level
    }[emotion]
    phase = 2 * math.pi * np.cumsum(pitch * rng.uniform(0.94, 1.06) * contour) / SAMPLING_RATE
    harmonics = range(1, int(0.45 * SAMPLING_RATE / (pitch * 1.5)) + 1)
    voice = sum((np.sin(k * phase + rng.uniform(0, 2 * math.pi)) / k**tilt for k in harmonics), np.zeros_like(time))
    if emotion == "angry":
        voice = voice * (1 + 0.6 * np.sign(np.sin(2 * math.pi * 55 * time)))  # rough
    tempo *= rng.uniform(0.9, 1.1)
    syllables = np.sin(math.pi * tempo * time + rng.uniform(0, math.pi)) ** 2
    edge = np.minimum(1.0, np.minimum(time, length - time) / 0.03)
    voice = voice * (0.12 + 0.88 * syllables) * edge
    return np.asarray(loudness * rng.uniform(0.9, 1.1) * voice / np.abs(voice).max())


def _recording(rng: random.Random, duration: float, start: float, speech: np.ndarray) -> np.ndarray:
    """The voice in a room: noise all along, and sometimes a knock or a hiss."""
    noise = np.random.default_rng(rng.getrandbits(32))
    samples = noise.normal(0, rng.uniform(0.004, 0.015), int(duration * SAMPLING_RATE))
    if rng.random() < 0.5:
        length = int(rng.uniform(0.02, 0.12) * SAMPLING_RATE)
        burst_start = rng.randrange(len(samples) - length)
        samples[burst_start : burst_start + length] += noise.normal(0, rng.uniform(0.05, 0.15), length)
    first = int(start * SAMPLING_RATE)
    samples[first : first + len(speech)] += speech[: len(samples) - first]
    return np.clip(samples, -1, 1).astype(np.float32)
