"""The channels of a sound file: by soundfile (wav, flac, ogg, mp3), else by PyAV (m4a, webm, the sound of a video)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from lensplug.errors import LensplugError
from lensplug.media.files import File
from lensplug.media.video_files import cut_short, pyav, seconds_of

BLOCK = 2**16
UNKNOWN = 2**62
"""More samples than this are what a file says that was written as it came, and so does not know its length."""
CUT_WAV = re.compile(r"data *: (\d+) \(should be (\d+)\)")
"""How libsndfile says that a wav holds less than its header says."""


def read_sound(file: File) -> tuple[np.ndarray, int]:
    """Floats `[channel sample]` and the sampling rate.

    Raises:
        LensplugError: If the file has no sound or cannot be read, or PyAV would be needed and is missing.
    """
    import soundfile

    try:
        waveform, rate = _by_soundfile(file)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: it takes a file named .raw for samples alone
        return _by_pyav(file, str(error))
    return (waveform, rate) if waveform.size else _by_pyav(file, "it has no samples")


def _by_soundfile(file: File) -> tuple[np.ndarray, int]:
    import soundfile

    with soundfile.SoundFile(file.opened()) as opened:
        rate, said, blocks = int(opened.samplerate), opened.frames, []
        while len(block := opened.read(BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block)
        header = CUT_WAV.search(opened.extra_info)
    waveform = np.concatenate(blocks).T if blocks else np.zeros((1, 0), np.float32)
    found_s = waveform.shape[1] / rate
    if header is not None and int(header[1]) < 2**32 - 2**16:
        cut_short(file, found_s * int(header[1]) / max(int(header[2]), 1), found_s)
    elif said < UNKNOWN:
        cut_short(file, said / rate, found_s)
    return waveform, rate


def _by_pyav(file: File, why: str) -> tuple[np.ndarray, int]:
    av = pyav(f"{file} cannot be read by soundfile ({why}); m4a, webm and the sound of videos need", "give a wav file")
    parts: list[np.ndarray] = []
    rate, said, begins = 0, None, 0.0
    try:
        with av.open(file.opened()) as container:
            if not container.streams.audio:
                silent = " It has pictures alone." if container.streams.video else ""
                raise LensplugError(f"{file} is not a sound that can be read: no sound is in it.{silent}")
            stream = container.streams.audio[0]
            said, to_floats = seconds_of(container, stream), av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                if not parts and frame.time is not None and container.start_time is not None:
                    begins = frame.time - container.start_time / 1e6
                rate, frame.pts = frame.sample_rate, None
                parts += _floats(to_floats, frame)
            parts += _floats(to_floats, None)
    except av.error.FFmpegError as error:
        if not parts:
            raise LensplugError(f"{file} is not a sound that can be read: {error}") from error
    if not parts:
        raise LensplugError(f"{file} is not a sound that can be read: it has no samples.")
    waveform = np.concatenate(parts, axis=1)
    cut_short(file, said, waveform.shape[1] / rate)
    # A player is silent until the sound of a video begins.
    return np.pad(waveform, ((0, 0), (max(0, round(begins * rate)), 0))), rate


def _floats(to_floats: Any, frame: Any) -> list[np.ndarray]:
    return [made.to_ndarray() for made in to_floats.resample(frame) if made.samples]
