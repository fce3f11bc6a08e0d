"""Sounds as users have them: files, or pairs of waveform and sampling rate."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.errors import LensplugError

CHANNELS = 8  # an axis of at most so many entries is that of the channels
LOUDEST = 4.0  # what decoding and resampling can exceed 1 by is far less; integers exceed it at once


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

        resampled = soxr.resample(self.waveform.numpy(), self.sampling_rate, sampling_rate)
        return Sound(torch.from_numpy(resampled), sampling_rate)

    def as_wav(self) -> str:
        """A wav file of floats as base64: no sample is rounded."""
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, self.waveform.numpy(), self.sampling_rate, format="WAV", subtype="FLOAT")
        return base64.b64encode(file.getvalue()).decode()


def load_sound(source: Any) -> Sound:
    """A sound from a file (wav, flac, ogg, mp3), or a pair of waveform and sampling rate; channels are averaged.

    Args:
        source: A path, a `Sound`, or `(waveform, sampling_rate)`: an array or tensor of floats from -1 to 1 (or
            int16), `[sample]`, `[channel sample]` or `[sample channel]`.

    Raises:
        LensplugError: If it is none of these, has no sampling rate, is empty, not finite or clipped, or the file
            is no sound.
    """
    if isinstance(source, Sound):
        return source
    if isinstance(source, str | Path):
        return _read(Path(source))
    if _is_pair(source):
        waveform, sampling_rate = source
        if sampling_rate < 1:
            raise LensplugError(f"the sampling rate is {sampling_rate} Hz.")
        return Sound(_mono(waveform), int(sampling_rate))
    if isinstance(source, np.ndarray | Tensor | list | tuple):
        raise LensplugError(
            "the sound has no sampling rate: give the pair (waveform, sampling_rate), such as (waveform, 16000)."
        )
    raise LensplugError(f"a sound is a {type(source).__name__}, expected a path or a pair (waveform, sampling_rate).")


def is_one_sound(source: Any) -> bool:
    """Whether this is a single sound, and not a list of them."""
    return isinstance(source, Sound | str | Path | np.ndarray | Tensor) or _is_pair(source)


def _is_pair(source: Any) -> bool:
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], Integral)


def _read(path: Path) -> Sound:
    import soundfile

    if not path.is_file():
        raise LensplugError(f"there is no file {str(path)!r}.")
    try:
        waveform, sampling_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise LensplugError(f"{str(path)!r} is not a sound that can be read: {error}") from error
    return Sound(_mono(waveform), int(sampling_rate))


def _mono(waveform: Any) -> Float[Tensor, " sample"]:
    values = waveform.detach().cpu() if isinstance(waveform, Tensor) else torch.as_tensor(np.asarray(waveform))
    if values.dtype == torch.int16:
        _refuse_clipped(values)
        values = values.float() / 2**15
    if not values.is_floating_point():
        raise LensplugError(
            f"a waveform is {str(values.dtype).removeprefix('torch.')}, expected floats from -1 to 1 (or int16): divide"
            " it by the largest value that its format has."
        )
    values = values.float()
    if values.numel() == 0:
        raise LensplugError("the sound is empty: it has no samples.")
    if values.ndim == 2 and min(values.shape) <= CHANNELS:
        values = values.mean(dim=int(values.shape[0] > values.shape[1]))
    if values.ndim != 1:
        raise LensplugError(f"a waveform has the shape {list(values.shape)}, expected [sample] or [channel, sample].")
    if not bool(values.isfinite().all()):
        raise LensplugError(f"the sound has {int((~values.isfinite()).sum())} samples that are NaN or infinite.")
    loudest = float(values.abs().max())
    if loudest > LOUDEST:
        bits = math.ceil(math.log2(loudest))
        raise LensplugError(
            f"the waveform reaches {loudest:.0f}, expected -1 to 1: are these integers stored as floats? Divide by"
            f" {2**bits}."
        )
    return values


def _refuse_clipped(values: Tensor) -> None:
    clipped = float(((values == -(2**15)) | (values == 2**15 - 1)).float().mean())
    if clipped > 0.01:
        raise LensplugError(
            f"{clipped:.0%} of the int16 samples are at the end of their range: the waveform was clipped when it was"
            " made. Scale it before it becomes integers, or give floats from -1 to 1."
        )
