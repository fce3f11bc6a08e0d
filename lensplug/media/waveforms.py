"""From samples of any type and layout to one channel of floats from -1 to 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.media.warn import warn_user

CHANNELS = 8
"""Maximum number of channels: the shorter axis is the channel axis if it has at most this many entries."""
LOUDEST = 4.0
"""What decoding and resampling can exceed 1 by is far less; integers exceed it at once."""
CANCELLED = 0.25
"""Fraction of the power that the mean of unrelated channels would have; two equally loud channels fall to it at a
correlation of -0.75."""
SCALES = {torch.int8: 2.0**7, torch.uint8: 2.0**7, torch.int16: 2.0**15, torch.int32: 2.0**31}
"""The largest value of an integer type; uint8 has its silence at 128, as in wav files."""


class Mono:
    """The mean of channels, block by block, and checks once all blocks were read."""

    def __init__(self) -> None:
        """Start without blocks."""
        self._loudest, self._unusable = 0.0, 0
        self._of_channels, self._of_mean, self._n_channels = 0.0, 0.0, 1

    def mixed(self, block: np.ndarray) -> np.ndarray:
        """The mean of floats `[channel sample]`."""
        channels = torch.from_numpy(block)
        usable = channels.isfinite()
        if not bool(usable.all()):
            self._unusable += int((~usable).sum())
            unusable: np.ndarray = channels[0].numpy()
            return unusable
        mean = channels.mean(dim=0)
        self._n_channels = len(channels)
        self._of_channels += float(channels.double().square().sum()) if len(channels) > 1 else 0.0
        self._of_mean += float(mean.double().square().sum()) if len(channels) > 1 else 0.0
        self._loudest = max(self._loudest, float(mean.abs().max()))
        mixed: np.ndarray = mean.numpy()
        return mixed

    def judge(self) -> None:
        """Check the complete signal.

        Raises:
            LensplugError: If it is not finite, or larger than samples are.
        """
        if self._unusable:
            raise LensplugError(f"the sound has {self._unusable} samples that are NaN or infinite.")
        unrelated = self._of_channels / self._n_channels**2
        if self._of_mean < CANCELLED * unrelated:
            warn_user(
                f"the {self._n_channels} channels cancel each other (opposite phase): of their power, the mean that the"
                f" model hears has {self._of_mean / unrelated:.0%}. Give one of them, such as (waveform[0],"
                " sampling_rate)."
            )
        if self._loudest > LOUDEST:
            bits = math.ceil(math.log2(self._loudest))
            raise LensplugError(
                f"the waveform reaches {self._loudest:.0f}, expected -1 to 1: are these integers stored as floats?"
                f" Divide by {2**bits}."
            )


def as_mono(waveform: Any) -> Float[Tensor, " sample"]:
    """The mean of the channels of a waveform.

    Raises:
        LensplugError: If it is empty, not finite, clipped, of more axes, or of a type whose scale is not known.
    """
    values = _scaled(_tensor(waveform))
    if values.numel() == 0:
        raise LensplugError("the sound is empty: it has no samples.")
    mono = Mono()
    mixed = mono.mixed(_channels(values).numpy())
    mono.judge()
    return torch.from_numpy(mixed)


def _tensor(waveform: Any) -> Tensor:
    if isinstance(waveform, Tensor):
        return waveform.detach().cpu()
    try:
        array = np.asarray(waveform)
        if array.dtype.kind not in "fiub" or (array.dtype.kind == "u" and array.dtype.itemsize > 1):
            raise LensplugError(f"a waveform is {array.dtype}, expected floats from -1 to 1 (or int16).")
        # In the byte order of the machine, and for torch never read-only.
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    except (ValueError, TypeError) as error:
        raise LensplugError(
            f"a waveform is a {type(waveform).__name__} that is no array ({error}): give floats from -1 to 1, [sample]"
            " or [channel, sample]."
        ) from error


def _scaled(values: Tensor) -> Float[Tensor, ...]:
    """Integers by the largest value of their type."""
    if values.is_floating_point():
        return values.float()
    if values.dtype not in SCALES:
        raise LensplugError(
            f"a waveform is {str(values.dtype).removeprefix('torch.')}, expected floats from -1 to 1 (or int16): divide"
            " it by the largest value that its format has, 32768 for 16 bits."
        )
    ends = torch.iinfo(values.dtype)
    clipped = float(((values == ends.min) | (values == ends.max)).float().mean()) if values.numel() else 0.0
    name = str(values.dtype).removeprefix("torch.")
    if clipped > 0.01:
        raise LensplugError(
            f"{clipped:.0%} of the {name} samples are at the end of their range: the waveform was clipped when it was"
            " made. Scale it before it becomes integers, or give floats from -1 to 1."
        )
    if values.dtype == torch.int32 and values.numel() and 0 < int(values.abs().max()) < 2**15:
        raise LensplugError(
            f"the int32 samples reach {int(values.abs().max())} of {2**31}, next to silence: are these 16 bits? Then"
            " make them int16."
        )
    centred = values.double() - (128 if values.dtype == torch.uint8 else 0)
    return (centred / SCALES[values.dtype]).float()


def _channels(values: Float[Tensor, ...]) -> Float[Tensor, "channel sample"]:
    if values.ndim == 1:
        return values[None]
    if values.ndim != 2 or min(values.shape) > CHANNELS:
        raise LensplugError(
            f"a waveform has the shape {list(values.shape)}, expected [sample], [channel, sample] or [sample, channel],"
            f" of at most {CHANNELS} channels."
        )
    if values.shape[0] == values.shape[1] > 1:
        raise LensplugError(f"a waveform has the shape {list(values.shape)}: which axis is that of the channels?")
    return values.T if values.shape[0] > values.shape[1] else values
