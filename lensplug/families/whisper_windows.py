"""Voxtral, GLM-ASR, Qwen2-Audio, Audio and Music Flamingo: Whisper's encoder on windows of 30 s, its frames stacked.

A window gives 1,500 frames of 20 ms, and every two or four of them become one position. Voxtral and the
other two cut a longer sound into windows, one behind the other; Qwen2-Audio hears the first only. GLM-ASR
hears 21 windows (its processor says 655 s, and means whole windows: 630 s), Audio Flamingo 3 hears 20
(Music Flamingo 40), Voxtral as many as there are: the rest is cut off by the processor, and the timeline ends
there. Voxtral fills its last window up with silence, and has positions for it; the others have none. A mask says how
much of each window is sound, but Voxtral has no mask: there a run of placeholders is one sound.

Follows `VoxtralProcessor`, `GlmAsrProcessor`, `Qwen2AudioProcessor`, `AudioFlamingo3Processor` and the
models' `get_audio_features` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lensplug.errors import LensplugError
from lensplug.families import MediaLayout, ProcessedBatch, refuse_other_sound
from lensplug.geometry import AudioTimeline
from lensplug.geometry.audio_frames import MEL, WHISPER_CONVOLUTIONS, Frames, frame_count, stacked

SAMPLING_RATE = 16000
WINDOW_S = 30.0
MEL_S = 0.01
WINDOW_MEL, WINDOW_FRAMES = 3000, 1500
STACK = {"voxtral": 4, "glmasr": 4, "qwen2_audio": 2, "audioflamingo3": 2, "musicflamingo": 2}
"""`config.model_type` -> frames in one position."""

Heard = tuple[int, float | None]
"""The positions of a sound, and the seconds that its mask says."""


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The timeline of every sound in the batch.

    Raises:
        LensplugError: If a sound is too short for a position, or sounds and runs of placeholders cannot be
            matched.
    """
    size, runs, media = STACK[batch.config.model_type], batch.placeholders["audio"], batch.media
    masks = [batch.outputs.get(name) for name in ("feature_attention_mask", "input_features_mask")]
    mask = next((candidate for candidate in masks if candidate is not None), None)
    sounds: list[list[Heard]]
    if mask is None:
        _refuse_other_stack(sum(map(sum, runs)), len(batch.outputs["input_features"]), size)
        sounds = [[(count, None) for count in sounds_of_example] for sounds_of_example in runs]
    else:
        cut = batch.config.model_type != "qwen2_audio"  # else every row is a sound
        sounds = _by_sound(runs, mask.sum(dim=-1).tolist(), size, cut=cut)
    if media.audio:
        _refuse_other_sounds(sounds, media.durations)
    timelines = {}
    for example, sounds_of_example in enumerate(sounds):
        for index, (count, heard_s) in enumerate(sounds_of_example):
            duration_s = media.durations[example][index] if media.audio else heard_s
            if media.audio:
                refuse_other_sound((example, index), media.durations[example][index], _seen_s(count, size, heard_s))
            timelines[example, index] = timeline(count, size, duration_s, heard_s)
    return MediaLayout(
        {"audio": [[count for count, _ in sounds_of_example] for sounds_of_example in sounds]}, timelines=timelines
    )


def timeline(count: int, size: int, duration_s: float | None, heard_s: float | None = None) -> AudioTimeline:
    """The timeline of a sound of `count` positions, each of `size` frames, with the given heard length."""
    frames = Frames.of((MEL, *WHISPER_CONVOLUTIONS), SAMPLING_RATE)
    start, end = frames.span(*stacked(count, size))
    # No convolution reaches across the edge of a window, so the last frame represents the rest of it.
    # (Voxtral makes one spectrogram of all windows: there 12 ms around an edge are heard on both sides.)
    first = torch.arange(count) * size
    window_of, is_last = first // WINDOW_FRAMES, (first + size) % WINDOW_FRAMES == 0
    start = torch.maximum(start, window_of * WINDOW_S)
    end = torch.where(is_last, (window_of + 1) * WINDOW_S, end)
    if duration_s is None:
        return AudioTimeline(start, end, float(end[-1]))
    cut = heard_s is not None and duration_s > heard_s + MEL_S  # a spectrogram ends within a column
    return AudioTimeline(start, end, duration_s, heard_s if cut else None)


def _seen_s(count: int, size: int, heard_s: float | None) -> tuple[float, float]:
    """How long the sound can be that the processor saw: full windows can be the beginning of any longer one."""
    windows = -(-count * size // WINDOW_FRAMES)
    if heard_s is None:
        return (windows - 1) * WINDOW_S, windows * WINDOW_S
    full = heard_s % WINDOW_S < MEL_S / 2 or heard_s % WINDOW_S > WINDOW_S - MEL_S / 2
    return heard_s, float("inf") if full else heard_s


def _positions(mel_frames: int, size: int) -> int:
    """Number of positions of a window, from its number of spectrogram columns."""
    return frame_count(mel_frames, WHISPER_CONVOLUTIONS) // size


def _by_sound(runs: Sequence[Sequence[int]], mel_frames: Sequence[int], size: int, *, cut: bool) -> list[list[Heard]]:
    """For each example its sounds, as (positions, seconds heard), from the columns of sound in each window.

    A sound ends with its run of placeholders, or before with a window that is not full: sounds can touch.
    """
    remaining, shares = iter(_with_positions(mel_frames, size, cut=cut)), []
    for runs_of_example in runs:
        share: list[Heard] = []
        for run in runs_of_example:
            while run > 0:
                columns = positions = 0
                for mel in remaining:
                    columns, positions = columns + mel, positions + _positions(mel, size)
                    if not cut or mel < WINDOW_MEL or positions >= run:
                        break
                if positions == 0:
                    raise LensplugError("there are more audio placeholders than the windows of sound have positions.")
                share.append((positions, columns * MEL_S))
                run -= positions
        shares.append(share)
    return shares


def _with_positions(mel_frames: Sequence[int], size: int, *, cut: bool) -> list[int]:
    """Without windows that have no position: what a sound of a little over 30 s leaves for its second."""
    spectrograms = []
    for index, mel in enumerate(mel_frames):
        if _positions(mel, size) > 0:
            spectrograms.append(mel)
        elif not (cut and index > 0 and mel_frames[index - 1] == WINDOW_MEL):
            raise LensplugError(
                f"a sound of the batch is {mel * MEL_S:.2f} s long and gets no position at all: this model needs"
                f" {(2 * size - 1) * MEL_S:.2f} s."
            )
    return spectrograms


def _refuse_other_stack(positions: int, windows: int, size: int) -> None:
    if positions * size != windows * WINDOW_FRAMES:
        raise LensplugError(
            f"{positions} audio placeholders for {windows} windows of 30 s, expected {WINDOW_FRAMES // size} for each:"
            " the times of such positions are not known."
        )


def _refuse_other_sounds(sounds: Sequence[Sequence[Any]], durations: Sequence[Sequence[float]]) -> None:
    for example, (sounds_of_example, given_durations) in enumerate(zip(sounds, durations, strict=True)):
        if len(sounds_of_example) != len(given_durations):
            raise LensplugError(
                f"example {example} has {len(given_durations)} sound(s), and its placeholders are those of"
                f" {len(sounds_of_example)}: put a"
                " word between placeholders of sounds that touch."
            )
