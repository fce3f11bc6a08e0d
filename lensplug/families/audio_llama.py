"""audio-LLaMA: frames of a waveform encoder (or of Whisper's), linearly interpolated to a few vectors.

Vector i of n blends the two frames around i (T - 1) / (n - 1) of T: with ten vectors, most frames of a long
sound are in none of them, and reach the language model only through the encoder's own attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lensplug.families import MediaLayout
from lensplug.families.audio_frames import MEL, Frames, interpolated
from lensplug.geometry import AudioTimeline


def media_layout(
    config: Any,
    processor_outputs: Mapping[str, Any],
    placeholders: Mapping[str, Sequence[Sequence[int]]],
    durations: Sequence[Sequence[float]] | None = None,
) -> MediaLayout:
    """The timeline of every sound in the batch."""
    sounds = iter(processor_outputs["audio_attention_mask"].sum(dim=-1).tolist())
    lengths: list[list[int]] = []
    timelines = {}
    for example, runs in enumerate(placeholders["audio"]):
        own: list[int] = []
        while sum(own) < sum(runs) and (length := next(sounds, None)) is not None:
            known = durations[example][len(own)] if durations is not None else None
            line = timeline(config, length, known)
            timelines[example, len(own)] = line
            own.append(len(line))
        lengths.append(own)
    return MediaLayout({"audio": lengths}, timelines=timelines)


def timeline(config: Any, length: int, duration_s: float | None = None) -> AudioTimeline:
    """The timeline of a sound of `length` samples (columns of the spectrogram, for Whisper)."""
    convolutions = list(config.encoder_convolutions)
    n_frames = length
    for kernel, stride, padding in convolutions:
        n_frames = (n_frames + 2 * padding - kernel) // stride + 1
    if not config.takes_waveforms:
        convolutions = [MEL, *convolutions]
    count = config.num_audio_vectors or -(-n_frames // config.frames_per_vector)
    start, end = Frames.of(convolutions, config.sampling_rate).span(*interpolated(n_frames, count))
    if duration_s is None:
        duration_s = length * (1 if config.takes_waveforms else MEL[1]) / config.sampling_rate
    return AudioTimeline(start, end, duration_s)
