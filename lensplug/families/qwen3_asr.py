"""Qwen3-ASR: chunks of one second, three convolutions with a stride of two, 13 positions a chunk.

A position represents 80 ms of sound, but the last of a chunk what is left of it: convolutions do not reach over its
edge. Sounds are heard whole, whatever their length; one of less than half a second is filled up with silence, and has
positions for it.

Follows `Qwen3ASRFeatureExtractor`, `Qwen3ASRProcessor` and `Qwen3ASREncoder` of transformers 5.
"""

from __future__ import annotations

import torch

from lensplug.families import MediaLayout, ProcessedBatch, refuse_other_sound, shared_out
from lensplug.geometry import AudioTimeline
from lensplug.geometry.audio_frames import MEL, Frames, frame_count

CONVOLUTIONS = ((3, 2, 1),) * 3
SAMPLING_RATE, MEL_S, LEAST_S = 16000, 0.01, 0.5


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The timeline of every sound in the batch.

    Raises:
        LensplugError: If a sound is not as long as the one that the processor was given.
    """
    columns = batch.outputs["input_features_mask"].sum(dim=-1).tolist()
    chunk = 2 * batch.config.audio_config.n_window
    sounds = [timeline(int(count), chunk) for count in columns]
    lengths, timelines = shared_out(batch.placeholders["audio"], sounds)
    durations = {(e, i): s for e, own in enumerate(batch.media.durations) for i, s in enumerate(own)}
    for place in sorted(durations.keys() & timelines.keys()):
        line, duration_s = timelines[place], durations[place]
        shortest_s = 0.0 if line.duration_s <= LEAST_S else line.duration_s
        refuse_other_sound(place, duration_s, (shortest_s, line.duration_s))
        timelines[place] = AudioTimeline(line.start_s, line.end_s, duration_s)
    return MediaLayout({"audio": lengths}, timelines=timelines)


def timeline(columns: int, chunk: int) -> AudioTimeline:
    """The timeline of a sound.

    Args:
        columns: Those of its spectrogram, of 10 ms.
        chunk: How many of them the encoder reads at a time.
    """
    full, rest = divmod(columns, chunk)
    counts = [frame_count(chunk, CONVOLUTIONS)] * full + ([frame_count(rest, CONVOLUTIONS)] if rest else [])
    within = torch.cat([torch.arange(count) for count in counts])
    begin = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)) * chunk * MEL_S
    start, end = Frames.of((MEL, *CONVOLUTIONS), SAMPLING_RATE).span(within, within)
    end = torch.where(within == counts[0] - 1, chunk * MEL_S, end) if full else end
    return AudioTimeline((begin + start).float(), (begin + end).float(), columns * MEL_S)
