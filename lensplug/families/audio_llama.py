"""audio-LLaMA: frames of a waveform encoder (or of Whisper's), linearly interpolated to a few vectors.

Vector i of n blends the two frames around i (T - 1) / (n - 1) of T: with ten vectors, most frames of a long
sound are in none of them, and reach the language model only through the encoder's own attention.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lensplug.errors import LensplugError
from lensplug.families import MediaLayout, ProcessedBatch, refuse_other_sound, shared_out
from lensplug.geometry import AudioTimeline
from lensplug.geometry.audio_frames import MEL, Frames, frame_count, interpolated


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The timeline of every sound in the batch."""
    heard = batch.outputs["audio_attention_mask"].sum(dim=-1).tolist()
    lengths, timelines = shared_out(batch.placeholders["audio"], [timeline(batch.config, length) for length in heard])
    if batch.media.audio:
        durations = {
            (e, i): length
            for e, durations_of_example in enumerate(batch.media.durations)
            for i, length in enumerate(durations_of_example)
        }
        if durations.keys() != timelines.keys():
            raise LensplugError(
                f"{len(durations)} sound(s) are given, and the processor saw {len(timelines)} in the prompts."
            )
        for place, line in timelines.items():
            refuse_other_sound(place, durations[place], (line.duration_s, line.duration_s))
        timelines = {place: replace(line, duration_s=durations[place]) for place, line in timelines.items()}
    return MediaLayout({"audio": lengths}, timelines=timelines)


def timeline(config: Any, length: int) -> AudioTimeline:
    """The timeline of a sound of `length` samples (columns of the spectrogram, for Whisper)."""
    convolutions = list(config.encoder_convolutions)
    n_frames = frame_count(length, convolutions)
    if not config.takes_waveforms:
        convolutions = [MEL, *convolutions]
    count = config.num_audio_vectors or -(-n_frames // config.frames_per_vector)
    start, end = Frames.of(convolutions, config.sampling_rate).span(*interpolated(n_frames, count))
    duration_s = length * (1 if config.takes_waveforms else MEL[1]) / config.sampling_rate
    return AudioTimeline(start, end, duration_s)
