"""A sound while it is decoded, block by block: one channel is kept, of the seconds that are wanted."""

from __future__ import annotations

import numpy as np

from lensplug.errors import LensplugError
from lensplug.media.limits import memory_limit, refuse_beyond_limit
from lensplug.media.waveforms import CHANNELS, Mono

BYTES_A_SAMPLE = 4
FIRST = 2**20
"""Samples for which there is room at the beginning."""


class Recording:
    """Takes the blocks of a file in their order.

    Its memory grows with what comes, not with what a file says that will come.
    """

    def __init__(self, name: str, rate: int, n_channels: int, *, start_s: float, end_s: float | None) -> None:
        """Nothing is decoded yet.

        Args:
            name: As errors name it.
            rate: Samples a second.
            n_channels: Number of channels of every block.
            start_s: Where what is wanted begins, in seconds.
            end_s: Where it ends; None for the end of the file.

        Raises:
            LensplugError: If it has more channels than a sound has.
        """
        if not 0 < n_channels <= CHANNELS:
            raise LensplugError(f"{name} has {n_channels} channels, expected 1 to {CHANNELS}: give one of them.")
        if rate < 1:
            raise LensplugError(f"{name} has {rate} samples a second, expected 1 or more.")
        self.name, self.rate, self.n_channels = name, rate, n_channels
        self.first = round(start_s * rate)
        self.end = None if end_s is None else round(end_s * rate)
        self.passed = 0
        """Samples that came, wanted or not."""
        self.mono = Mono()
        self._samples = np.empty(FIRST, np.float32)
        self._n_kept = 0

    @property
    def seconds(self) -> float:
        """How much has come."""
        return self.passed / self.rate

    @property
    def complete(self) -> bool:
        """Whether all that is wanted has come."""
        return self.end is not None and self.passed >= self.end

    def refuse_length(self, n_samples: int) -> None:
        """Refuse a length that the file says it has, or has.

        Raises:
            LensplugError: If the memory limit does not allow what of it is wanted.
        """
        n_wanted = max(0, (n_samples if self.end is None else min(n_samples, self.end)) - self.first)
        seconds = n_samples / self.rate
        length = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.0f} s"
        refuse_beyond_limit(
            n_wanted * BYTES_A_SAMPLE,
            f"{self.name} lasts {length} at {self.rate} Hz",
            "load the part that you want (lensplug.media.load_sound(file, start_s=0, end_s=60))",
        )

    def skip(self, n_samples: int) -> None:
        """Pass what is not decoded, before the first block."""
        self.passed += n_samples

    def silence(self, n_samples: int) -> None:
        """Take samples of silence."""
        self.refuse_length(self.passed + n_samples)
        block = np.zeros((self.n_channels, 2**16), np.float32)
        for begin in range(0, n_samples, block.shape[1]):
            self.take(block[:, : n_samples - begin])

    def take(self, block: np.ndarray) -> None:
        """Take floats `[channel sample]`.

        Raises:
            LensplugError: If there are more samples than the memory limit allows, or the channels are others than
                before.
        """
        if block.shape[0] != self.n_channels:
            raise LensplugError(
                f"{self.name} has {self.n_channels} channels, and {block.shape[0]} later on: it is damaged."
            )
        begin = max(0, self.first - self.passed)
        end = block.shape[1] if self.end is None else max(0, self.end - self.passed)
        self.passed += block.shape[1]
        wanted_block = block[:, begin:end]
        if not wanted_block.size:
            return
        n_needed = self._n_kept + wanted_block.shape[1]
        if n_needed > len(self._samples):
            self.refuse_length(self.passed)
            room = min(len(self._samples) * 5 // 4, memory_limit() // BYTES_A_SAMPLE)
            self._samples.resize(max(n_needed, room), refcheck=False)
        self._samples[self._n_kept : n_needed] = self.mono.mixed(wanted_block)
        self._n_kept = n_needed

    def waveform(self) -> np.ndarray:
        """All that came of what was wanted, as one channel.

        Raises:
            LensplugError: If nothing came.
        """
        if self._n_kept == 0 and self.passed:
            raise LensplugError(
                f"{self.name} lasts {self.seconds:.1f} s, and is wanted from {self.first / self.rate:g} s on."
            )
        self._samples.resize(self._n_kept, refcheck=False)
        return self._samples
