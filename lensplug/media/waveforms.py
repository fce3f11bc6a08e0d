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


def as_mono(waveform: Any) -> Float[Tensor, " sample"]:
    """The mean of the channels of a waveform.

    Raises:
        LensplugError: If it is empty, not finite, clipped, of more axes, or of a type whose scale is not known.
    """
    values = _scaled(_tensor(waveform))
    if values.numel() == 0:
        raise LensplugError("the sound is empty: it has no samples.")
    if not bool(values.isfinite().all()):
        raise LensplugError(f"the sound has {int((~values.isfinite()).sum())} samples that are NaN or infinite.")
    values = _mixed(values)
    loudest = float(values.abs().max())
    if loudest > LOUDEST:
        bits = math.ceil(math.log2(loudest))
        raise LensplugError(
            f"the waveform reaches {loudest:.0f}, expected -1 to 1: are these integers stored as floats? Divide by"
            f" {2**bits}."
        )
    return values


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


def _mixed(values: Float[Tensor, ...]) -> Float[Tensor, " sample"]:
    """The mean over channels, where it does not silence them."""
    if values.ndim == 1:
        return values
    if values.ndim != 2 or min(values.shape) > CHANNELS:
        raise LensplugError(
            f"a waveform has the shape {list(values.shape)}, expected [sample], [channel, sample] or [sample, channel],"
            f" of at most {CHANNELS} channels."
        )
    if values.shape[0] == values.shape[1] > 1:
        raise LensplugError(f"a waveform has the shape {list(values.shape)}: which axis is that of the channels?")
    channels = values.T if values.shape[0] > values.shape[1] else values
    mean = channels.mean(dim=0)
    unrelated = float(channels.double().square().mean(dim=1).sum()) / len(channels) ** 2
    left = float(mean.double().square().mean())
    if left < CANCELLED * unrelated:
        warn_user(
            f"the {len(channels)} channels cancel each other (opposite phase): of their power, the mean that the model"
            f" hears has {left / unrelated:.0%}. Give one of them, such as (waveform[0], sampling_rate)."
        )
    return mean
