"""The frames of a sound encoder on a time axis: what the audio families share.

Between samples and frames are convolutions, (kernel, stride, padding) each; a log-mel spectrogram is one
of them, its window the kernel and its hop the stride. They give the middle of the samples that a frame
sees, and how far it is to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MEL = (400, 160, 200)
"""Whisper's spectrogram: windows of 400 samples around every 160th."""
WHISPER_CONVOLUTIONS = ((3, 1, 1), (3, 2, 1))


@dataclass(frozen=True)
class Frames:
    """Frame t represents the samples from `first + t * stride` to one stride later, in seconds."""

    first_s: float
    stride_s: float

    @classmethod
    def of(cls, convolutions: Iterable[tuple[int, int, int]], sampling_rate: int) -> Frames:
        """Behind these convolutions."""
        center, jump = 0.5, 1  # of the first sample, and from one to the next
        for kernel, stride, padding in convolutions:
            center += ((kernel - 1) / 2 - padding) * jump
            jump *= stride
        return cls((center - jump / 2) / sampling_rate, jump / sampling_rate)

    def span(
        self, first: Int[Tensor, " token"], last: Int[Tensor, " token"]
    ) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
        """Start and end of the time that frames `first` to `last` (inclusive) represent, in seconds; from 0."""
        start = self.first_s + first.double() * self.stride_s
        end = self.first_s + (last.double() + 1) * self.stride_s
        return start.clamp(min=0).float(), end.float()


def frame_count(length: int, convolutions: Iterable[Sequence[int]]) -> int:
    """How many frames the convolutions (kernel, stride, padding) make of a number of samples or columns."""
    for kernel, stride, padding in convolutions:
        length = (length + 2 * padding - kernel) // stride + 1
    return length


def stacked(count: int, size: int) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
    """First and last frame of each position, where `size` frames are stacked or pooled into one."""
    first = torch.arange(count) * size
    return first, first + size - 1


def interpolated(n_frames: int, count: int) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
    """First and last frame of each position, where `n_frames` are interpolated to `count` (corners aligned)."""
    source_index = torch.arange(count).double() * (n_frames - 1) / max(count - 1, 1)
    near = (source_index - source_index.round()).abs() < 1e-9  # on a frame, whatever rounding says
    source_index = torch.where(near, source_index.round(), source_index)
    return source_index.floor().long(), source_index.ceil().long()
