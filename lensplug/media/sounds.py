"""Sounds as users have them: files, or pairs of waveform and sampling rate."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.media.files import as_file, is_file
from lensplug.media.limits import refuse_beyond_limit
from lensplug.media.sound_files import read_sound
from lensplug.media.waveforms import as_mono
from lensplug.validation.arguments import checked


@dataclass(frozen=True)
class Sound:
    """One recording, mono."""

    waveform: Float[Tensor, " sample"]
    """-1 to 1."""
    sampling_rate: int
    """Samples a second."""

    @property
    def duration_s(self) -> float:
        """Its length in seconds."""
        return len(self.waveform) / self.sampling_rate

    def at_rate(self, sampling_rate: int) -> Sound:
        """The same sound with another number of samples a second (soxr, high quality)."""
        if sampling_rate == self.sampling_rate:
            return self
        import soxr

        n_samples = round(len(self.waveform) * sampling_rate / self.sampling_rate)
        refuse_beyond_limit(
            4 * n_samples,
            f"the sound lasts {self.duration_s / 3600:.1f} hours at {self.sampling_rate} Hz",
            f"cut it before it is resampled to {sampling_rate} Hz",
        )
        resampled = soxr.resample(self.waveform.numpy(), self.sampling_rate, sampling_rate)
        return Sound(torch.from_numpy(resampled), sampling_rate)

    def as_wav(self) -> str:
        """A wav file of floats as base64: no sample is rounded."""
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, self.waveform.numpy(), self.sampling_rate, format="WAV", subtype="FLOAT")
        return base64.b64encode(file.getvalue()).decode()


@checked
def load_sound(source: Any, *, start_s: float = 0.0, end_s: float | None = None) -> Sound:
    """A sound from a file, or a pair of waveform and sampling rate; channels are averaged.

    A warning says where channels cancel each other, and where a file is cut short. Files are read as far as the memory
    limit allows (`limits.set_memory_limit`): unless it is changed, one hour and 40 minutes at 44.1 kHz, four hours and
    a half at 16 kHz. Of a longer one a part can be loaded, and nothing else of it is kept.

    Args:
        source: A file (wav, flac, ogg, mp3; with PyAV also m4a, webm and the sound of a video) as a path, bytes, or
            open; a `Sound`; `(waveform, sampling_rate)`: an array, tensor or list of floats from -1 to 1, or an array
            of int16, int32, int8 or uint8, which are scaled by their type; `[sample]`, or with channels, which are
            the shorter axis: `[channel sample]` or `[sample channel]`; what a data set of Hugging Face holds:
            a dictionary with `array` and `sampling_rate`, or `bytes` and `path`, or a decoder of torchcodec.
        start_s: Where the part that is wanted begins, in seconds.
        end_s: Where it ends; None for the end of the sound.

    Raises:
        LensplugError: If it is none of these, has no sampling rate, is empty, not finite or clipped, has no such part,
            or the file is no sound, or longer than the limit.
    """
    if not 0 <= start_s < (math.inf if end_s is None else end_s):
        raise LensplugError(f"start_s is {start_s!r} and end_s {end_s!r}, expected 0 <= start_s < end_s, in seconds.")
    if not isinstance(source, Mapping) or _of_dictionary(source) is None:
        if is_file(source):
            with as_file(source, "a sound") as file:
                waveform, rate = read_sound(file, start_s, end_s)
            return Sound(torch.from_numpy(waveform), rate)
        if hasattr(source, "get_all_samples"):  # a decoder of torchcodec
            _refuse_long_decoder(source)
    return _part(_of_memory(source), start_s, end_s)


def _part(sound: Sound, start_s: float, end_s: float | None) -> Sound:
    first, end = (None if time_s is None else round(time_s * sound.sampling_rate) for time_s in (start_s, end_s))
    if not (first or end is not None):
        return sound
    waveform = sound.waveform[first:end]
    if not len(waveform):
        raise LensplugError(f"the sound lasts {sound.duration_s:.1f} s, and is wanted from {start_s:g} s on.")
    return Sound(waveform, sound.sampling_rate)


def _refuse_long_decoder(decoder: Any) -> None:
    about = getattr(decoder, "metadata", None)
    seconds, rate = (getattr(about, name, None) for name in ("duration_seconds", "sample_rate"))
    if seconds and rate:
        refuse_beyond_limit(
            round(4 * seconds * rate * (getattr(about, "num_channels", None) or 1)),
            f"the sound lasts {seconds / 3600:.1f} hours at {rate} Hz",
            "give the part that you want (decoder.get_samples_played_in_range)",
        )


def _of_memory(source: Any) -> Sound:
    """A sound that is no file."""
    if isinstance(source, Sound):
        return _of_pair(source.waveform, source.sampling_rate)
    if isinstance(source, Mapping) and (pair := _of_dictionary(source)) is not None:
        return _of_pair(*pair)
    if hasattr(source, "get_all_samples"):  # a decoder of torchcodec
        source = source.get_all_samples()
    if hasattr(source, "data") and hasattr(source, "sample_rate"):
        return _of_pair(source.data, source.sample_rate)
    if _is_pair(source):
        return _of_pair(*source)
    if isinstance(source, np.ndarray | Tensor | list | tuple):
        raise LensplugError(
            "the sound has no sampling rate: give the pair (waveform, sampling_rate), such as (waveform, 16000)."
        )
    raise LensplugError(f"a sound is a {type(source).__name__}, expected a path or a pair (waveform, sampling_rate).")


def is_one_sound(source: Any) -> bool:
    """Whether this is a single sound, and not a list of them."""
    if isinstance(source, Sound | np.ndarray | Tensor) or is_file(source) or _is_pair(source):
        return True
    return any(hasattr(source, name) for name in ("get_all_samples", "sample_rate"))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | np.bool_) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 0)


def _is_pair(source: Any) -> bool:
    """A waveform and a number, as a tuple or a list."""
    return isinstance(source, tuple | list) and len(source) == 2 and _is_number(source[0]) != _is_number(source[1])


def _of_dictionary(source: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """Waveform and rate of a dictionary; None where it names a file."""
    waveform = next((source[name] for name in ("array", "raw", "waveform") if source.get(name) is not None), None)
    if waveform is None:
        return None
    rate = next((source[name] for name in ("sampling_rate", "sample_rate") if source.get(name) is not None), None)
    if rate is None:
        raise LensplugError("the sound is a dictionary without sampling_rate: add it, in Hz.")
    return waveform, rate


def _of_pair(waveform: Any, rate: Any) -> Sound:
    if not _is_number(rate):  # as scipy.io.wavfile.read returns them
        waveform, rate = rate, waveform
    if isinstance(rate, np.ndarray | Tensor):
        rate = rate.item()
    if isinstance(rate, bool | np.bool_) or not math.isfinite(rate) or rate < 1 or rate != int(rate):
        raise LensplugError(
            f"the sampling rate is {rate if isinstance(rate, bool) else f'{rate:g}'} Hz, expected a whole number of"
            " samples in a second, such as 16000."
        )
    return Sound(as_mono(waveform), int(rate))
