"""Voxtral, GLM-ASR, Qwen2-Audio, Audio Flamingo 3: Whisper's encoder on windows of 30 s, its frames stacked.

A window gives 1,500 frames of 20 ms, and every two or four of them become one position. Voxtral and the
other two cut a longer sound into windows, one behind the other; Qwen2-Audio hears the first only. Voxtral
fills its last window up with silence, and has positions for it; the others have none.

Follows `VoxtralProcessor`, `GlmAsrProcessor`, `Qwen2AudioProcessor`, `AudioFlamingo3Processor` and the
models' `get_audio_features` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lensplug.families import MediaLayout
from lensplug.families.audio_frames import MEL, WHISPER_CONVOLUTIONS, Frames, stacked
from lensplug.geometry import AudioTimeline

SAMPLING_RATE = 16000
WINDOW_S = 30.0
MEL_S = 0.01
STACK = {"voxtral": 4, "glmasr": 4, "qwen2_audio": 2, "audioflamingo3": 2}
"""`config.model_type` -> frames in one position."""


def media_layout(
    config: Any,
    processor_outputs: Mapping[str, Any],
    placeholders: Mapping[str, Sequence[Sequence[int]]],
    durations: Sequence[Sequence[float]] | None = None,
) -> MediaLayout:
    """The timeline of every sound in the batch."""
    size = STACK[config.model_type]
    mask = processor_outputs.get("feature_attention_mask")
    lengths = [list(runs) for runs in placeholders["audio"]]
    if mask is not None:  # Qwen2-Audio: a row for each sound, and sounds can touch
        lengths = _by_sound(lengths, [_positions(int(mel), size) for mel in mask.sum(dim=-1)])
    timelines = {}
    for example, own in enumerate(lengths):
        for index, count in enumerate(own):
            known = durations[example][index] if durations is not None else None
            timelines[example, index] = timeline(count, size, known)
    return MediaLayout({"audio": lengths}, timelines=timelines)


def timeline(count: int, size: int, duration_s: float | None) -> AudioTimeline:
    """The timeline of a sound of `count` positions, each of `size` frames."""
    frames = Frames.of((MEL, *WHISPER_CONVOLUTIONS), SAMPLING_RATE)
    start, end = frames.span(*stacked(count, size))
    # Windows are cut before the spectrogram: no frame hears across their edge, and the last reaches to it.
    window_of = torch.arange(count) * size // round(WINDOW_S / frames.stride_s)
    last_of_window = torch.ones(count, dtype=torch.bool)
    last_of_window[:-1] = window_of[1:] > window_of[:-1]
    full = last_of_window & ((torch.arange(count) + 1) * size % round(WINDOW_S / frames.stride_s) == 0)
    start = torch.maximum(start, window_of * WINDOW_S)
    end = torch.where(full, (window_of + 1) * WINDOW_S, end)
    return AudioTimeline(start, end, float(end[-1]) if duration_s is None else duration_s)


def _positions(mel_frames: int, size: int) -> int:
    """Positions of a sound of so many spectrogram columns."""
    return ((mel_frames - 1) // 2 + 1 - size) // size + 1


def _by_sound(runs: Sequence[Sequence[int]], sounds: list[int]) -> list[list[int]]:
    """Each example's share of the sounds, which stand in the order of the prompts."""
    rest, shares = iter(sounds), []
    for own in runs:
        share: list[int] = []
        while sum(share) < sum(own) and (count := next(rest, None)) is not None:
            share.append(count)
        shares.append(share)
    return shares
