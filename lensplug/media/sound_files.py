"""A sound file as one channel: by soundfile (wav, flac, ogg, mp3), else by PyAV (m4a, webm, the sound of a video)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from lensplug.errors import LensplugError
from lensplug.media.containers import (
    SOUND_CODECS,
    cut_short,
    open_container,
    pyav,
    refuse_other_codecs,
    seconds_of,
)
from lensplug.media.files import File, decoding
from lensplug.media.recordings import Recording

BLOCK = 2**16
UNKNOWN = 2**62
"""More samples than this are what a file says that was written as it came, and so does not know its length."""
CUT_WAV = re.compile(r"data *: (\d+) \(should be (\d+)\)")
"""How libsndfile says that a wav holds less than its header says."""
BEGINNINGS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        *(rb"RIFF....WAVE", rb"RIFX....WAVE", rb"RF64....WAVE", rb"riff\x2e\x91\xcf\x11", rb"FORM....AIF[FC]"),
        *(rb"fLaC", rb"OggS", rb"ID3", rb"\xff[\xe2-\xff]", rb"\.snd", rb"caff", rb"NIST_1A"),
    )
)
"""First bytes of the formats read with soundfile: wav, Wave64, AIFF, FLAC, Ogg, MP3, AU, CAF, and NIST SPHERE (speech
corpora). soundfile supports more, formats of samplers and of Octave, which are left out."""
COMMAND = "ffmpeg -i IN OUT.flac"
NO_PICTURES = 2**14
"""Pixels: the cover of a song is never decoded."""


def read_sound(file: File, start_s: float = 0.0, end_s: float | None = None) -> tuple[np.ndarray, int]:
    """Floats `[sample]`, the mean of the channels, and the sampling rate.

    Args:
        file: The file.
        start_s: Where what is wanted begins, in seconds.
        end_s: Where it ends; None for the end of the file.

    Raises:
        LensplugError: If the file has no sound, cannot be read or is longer than the memory limit allows, or PyAV would
            be needed and is missing.
    """
    import soundfile

    if any(pattern.match(file.begins()) for pattern in BEGINNINGS):
        try:
            recording = _by_soundfile(file, start_s, end_s)
        except soundfile.SoundFileError as error:
            recording = _by_pyav(file, str(error), start_s, end_s)
        else:
            if not recording.passed:
                recording = _by_pyav(file, "it has no samples", start_s, end_s)
    else:
        recording = _by_pyav(file, "it is none of wav, flac, ogg, mp3, aiff, au, caf, w64, sph", start_s, end_s)
    waveform = recording.waveform()
    recording.mono.judge()
    return waveform, recording.rate


def _by_soundfile(file: File, start_s: float, end_s: float | None) -> Recording:
    import soundfile

    with soundfile.SoundFile(file.opened()) as opened:
        rate, n_declared = int(opened.samplerate), opened.frames
        recording = Recording(str(file), rate, opened.channels, start_s=start_s, end_s=end_s)
        if n_declared < UNKNOWN:
            recording.refuse_length(n_declared)
            if recording.first and opened.format in ("WAV", "FLAC", "AIFF", "W64", "RF64"):  # where it is exact
                recording.skip(opened.seek(min(recording.first, n_declared)))
        while not recording.complete and len(block := opened.read(BLOCK, dtype="float32", always_2d=True)):
            recording.take(block.T)
        header = CUT_WAV.search(opened.extra_info)
    found_s = recording.seconds
    if recording.complete:
        return recording
    if header is not None and int(header[1]) < 2**32 - 2**16:
        cut_short(file, found_s * int(header[1]) / max(int(header[2]), 1), found_s)
    elif n_declared < UNKNOWN:
        cut_short(file, n_declared / rate, found_s)
    return recording


def _by_pyav(file: File, why: str, start_s: float, end_s: float | None) -> Recording:
    av = pyav(f"{file} cannot be read by soundfile ({why}); m4a, webm and the sound of videos need", "give a wav file")
    with decoding(file, "a sound"), open_container(av, file, max_pixels=NO_PICTURES) as container:
        if not container.streams.audio:
            silent = " It has pictures alone." if container.streams.video else ""
            raise LensplugError(f"{file} is not a sound that can be read: no sound is in it.{silent}")
        stream = container.streams.audio[0]
        refuse_other_codecs(stream, file, SOUND_CODECS, COMMAND)
        declared_s, rate = seconds_of(container, stream), stream.codec_context.sample_rate
        if declared_s is not None and rate > 0:
            Recording(str(file), rate, 1, start_s=start_s, end_s=end_s).refuse_length(round(declared_s * rate))
        begins, recording = 0, None
        to_floats = av.AudioResampler(format="fltp")
        try:
            for frame in container.decode(stream):
                if recording is None:  # what the frames are is known of them alone: their header can say half the rate
                    n_channels = frame.layout.nb_channels
                    recording = Recording(str(file), frame.sample_rate, n_channels, start_s=start_s, end_s=end_s)
                    begins = _late(frame, container)
                    recording.silence(begins)
                frame.pts = None
                _take(to_floats.resample(frame), recording)
                if recording.complete:
                    return recording
            if recording is not None:
                _take(to_floats.resample(None), recording)
        except av.error.FFmpegError:
            if recording is None or recording.passed <= begins:
                raise
    if recording is None or recording.passed <= begins:
        raise LensplugError(f"{file} is not a sound that can be read: it has no samples.")
    cut_short(file, declared_s, (recording.passed - begins) / recording.rate)
    return recording


def _late(frame: Any, container: Any) -> int:
    """Samples of silence with which a player begins: the sound of a video can begin after its frames."""
    if frame.time is None or container.start_time is None:
        return 0
    late_s: float = frame.time - container.start_time / 1e6
    return max(0, round(late_s * int(frame.sample_rate)))


def _take(frames: list[Any], recording: Recording) -> None:
    for frame in frames:
        if frame.samples:
            recording.take(frame.to_ndarray())
