"""Granite Speech: windows of 300 ms, of each of which a Q-Former makes three positions.

The encoder reads two columns of a spectrogram as one frame of 20 ms. A window of 15 frames goes to a Q-Former of three
queries: each position is made of all of its window, and which part of it has no place (the three have the same start
and end). The last window ends with the sound. Sounds are heard whole, whatever their length.

How long a sound was that stands in a batch with longer ones is not among the processor's outputs: where it is not
known (`lens.encode` without `audio=`), its timeline ends with its last window.

Follows `GraniteSpeechFeatureExtractor` and `GraniteSpeechEncoderProjector` of transformers 5. (The encoder's attention
and convolutions know of sound around a window as well.)
"""

from __future__ import annotations

from typing import Any

import torch

from lensplug.families import MediaLayout, ProcessedBatch, refuse_other_sound, shared_out
from lensplug.geometry import AudioTimeline
from lensplug.geometry.audio_frames import MEL, Frames

SAMPLING_RATE = 16000
COLUMNS = (2, 2, 0)
"""Columns of the spectrogram to a frame, as a convolution: kernel, stride, padding."""


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The timeline of every sound in the batch.

    Raises:
        LensplugError: If a sound is not as long as the one that the processor was given.
    """
    mask, config = batch.outputs.get("input_features_mask"), batch.config
    if mask is None:
        return MediaLayout()
    frames = batch.outputs["input_features"].shape[1]
    counts = mask.sum(dim=-1).tolist()
    sounds = [timeline(config, int(count), most_frames=frames) for count in counts]
    lengths, timelines = shared_out(batch.placeholders["audio"], sounds)
    window_s = config.window_size * Frames.of((MEL, COLUMNS), SAMPLING_RATE).stride_s
    durations = {(e, i): s for e, own in enumerate(batch.media.durations) for i, s in enumerate(own)}
    for place in sorted(durations.keys() & timelines.keys()):
        windows = len(timelines[place]) // queries(config)
        refuse_other_sound(place, durations[place], ((windows - 1) * window_s, windows * window_s))
        timelines[place] = timeline(config, len(timelines[place]), duration_s=durations[place])
    return MediaLayout({"audio": lengths}, timelines=timelines)


def queries(config: Any) -> int:
    """Positions of a window."""
    return int(config.window_size // config.downsample_rate)


def timeline(
    config: Any, count: int, *, duration_s: float | None = None, most_frames: int | None = None
) -> AudioTimeline:
    """The timeline of a sound.

    Args:
        config: The full model's configuration.
        count: Its positions.
        duration_s: How long it is.
        most_frames: How many frames there are of the longest of its batch.
    """
    size = config.window_size
    window = torch.arange(count) // queries(config)
    start, end = Frames.of((MEL, COLUMNS), SAMPLING_RATE).span(window * size, window * size + size - 1)
    if duration_s is None:
        frame_s = Frames.of((MEL, COLUMNS), SAMPLING_RATE).stride_s
        duration_s = float(end[-1]) if most_frames is None else min(float(end[-1]), most_frames * frame_s)
    return AudioTimeline(start, end.clamp(max=max(duration_s, float(start[-1]))), duration_s)
