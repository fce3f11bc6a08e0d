"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: images and videos as Qwen2-VL has them, sounds in chunks.

In Qwen2.5-Omni a chunk is of two seconds. Two convolutions make frames of 20 ms, chunk by chunk (they do not reach over
its edge), and two neighbouring frames are averaged to one position of 40 ms; a frame that is left over at the end has
none. The processor cuts a sound that is longer than its feature extractor takes (300 s in the published one).
Qwen3-Omni has the chunks of Qwen3-ASR, of one second (`lensplug.families.qwen3_asr`), and hears a sound whole.

Sounds of videos (`load_audio_from_video=True` in a call of the processor) stand in pieces among the positions of their
video, and each piece has its place and time as elsewhere. The model has to be told of it (`use_audio_in_video=True`):
else it numbers these positions as words.

Follows `Qwen2_5OmniProcessor`, `Qwen2_5OmniAudioEncoder` and those of Qwen3-Omni in transformers 5.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from lensplug.errors import LensplugError
from lensplug.families import MediaLayout, ProcessedBatch, qwen3_asr, qwen_vl, refuse_other_sound, shared_out
from lensplug.geometry import AudioTimeline
from lensplug.geometry.audio_frames import MEL, WHISPER_CONVOLUTIONS, Frames, frame_count

SAMPLING_RATE, MEL_S, POOLED = 16000, 0.01, 2


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image and video, and the timeline of every sound in the batch.

    Raises:
        LensplugError: If a sound is not as long as the one that the processor was given, or sounds stand among the
            positions of videos and the model was not told.
    """
    _refuse_untold_sounds(batch)
    layout = qwen_vl.media_layout(batch)
    mask = batch.outputs.get("feature_attention_mask")
    if mask is None or "audio" not in batch.placeholders:
        return layout
    chunk, columns = 2 * batch.config.audio_config.n_window, mask.sum(dim=-1).tolist()
    of_columns = qwen3_asr.timeline if batch.config.model_type == "qwen3_omni_moe_thinker" else timeline
    sounds = [of_columns(int(count), chunk) for count in columns]
    extractor = getattr(batch.processor, "feature_extractor", None)
    longest_s = float(getattr(extractor, "chunk_length", mask.shape[-1] * MEL_S))
    lengths, timelines = shared_out(batch.placeholders["audio"], sounds)
    durations = {(e, i): s for e, own in enumerate(batch.media.durations) for i, s in enumerate(own)}
    for place in sorted(durations.keys() & timelines.keys()):
        timelines[place] = of_duration(timelines[place], durations[place], place, longest_s)
    return replace(layout, lengths={**layout.lengths, "audio": lengths}, timelines=timelines)


def _refuse_untold_sounds(batch: ProcessedBatch) -> None:
    """A piece of a sound behind a piece of a video, with no word between, is the sound of that video."""
    if not {"video", "audio"} <= set(batch.placeholders) or batch.outputs.get("use_audio_in_video"):
        return
    tokens = batch.outputs["input_ids"]
    is_video, is_audio = (tokens == token for token in (batch.config.video_token_id, batch.config.audio_token_id))
    if bool((is_video[:, :-1] & is_audio[:, 1:]).any()):
        raise LensplugError(
            "a sound stands among the positions of its video, and the model was not told: it would number these"
            " positions as words. Give lens.encode({**outputs, 'use_audio_in_video': True})."
        )


def timeline(columns: int, chunk: int) -> AudioTimeline:
    """The timeline of a sound.

    Args:
        columns: Those of its spectrogram, of 10 ms.
        chunk: How many of them the convolutions read at a time.
    """
    full, rest = divmod(columns, chunk)
    counts = [frame_count(size, WHISPER_CONVOLUTIONS) for size in [chunk] * full + [rest] * (rest > 0)]
    within = torch.cat([torch.arange(count) for count in counts])
    begin = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)) * chunk * MEL_S
    start, end = Frames.of((MEL, *WHISPER_CONVOLUTIONS), SAMPLING_RATE).span(within, within)
    end = torch.where(within == counts[0] - 1, chunk * MEL_S, end) if full else end
    pairs = len(within) // POOLED * POOLED
    return AudioTimeline(
        (begin + start)[:pairs:POOLED].float(), (begin + end)[POOLED - 1 : pairs : POOLED].float(), columns * MEL_S
    )


def of_duration(line: AudioTimeline, duration_s: float, place: tuple[int, int], longest_s: float) -> AudioTimeline:
    """The timeline of a sound whose duration is known; a full spectrogram can be the beginning of a longer one.

    Args:
        line: The timeline of what was heard.
        duration_s: How long the sound is.
        place: Its example and number.
        longest_s: How much the processor hears of a sound, if it cuts any.
    """
    heard_s = line.duration_s
    full = abs(heard_s - longest_s) < MEL_S / 2
    refuse_other_sound(place, duration_s, (heard_s, float("inf") if full else heard_s))
    cut = duration_s > heard_s + MEL_S  # a spectrogram ends within a column
    return AudioTimeline(line.start_s, line.end_s, duration_s, heard_s if cut else None)
