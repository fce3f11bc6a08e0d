"""Frame sampling: evenly spaced frame numbers if these are evenly spaced in time, else evenly spaced times."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Track:
    """What is known of the frames of a file."""

    n_frames: int
    times_s: list[float] | None
    """When each is shown, from the beginning of the file (of its sound, where that begins first); None where the
    file does not say, as raw H.264."""

    @classmethod
    def at(cls, times: list[float | None]) -> Track:
        """The track of frames in order, from the time at which each is shown."""
        shown_times = [max(time, 0.0) for time in times if time is not None]
        if len(shown_times) < len(times) or any(after < before for before, after in pairwise(shown_times)):
            return cls(len(times), None)
        return cls(len(times), shown_times)

    def usual_s(self) -> float:
        """How long a frame stays, as a rule."""
        times = self.times_s or []
        return statistics.median(after - before for before, after in pairwise(times)) if len(times) > 1 else 0.0


@dataclass(frozen=True)
class Choice:
    """The frames that are taken, in order; one that stays long can be there several times."""

    frames: list[int]
    times_s: list[float] | None
    warning: str = ""
    """What a user should know of them."""


def choose(track: Track, name: str, num_frames: int) -> Choice:
    """The frames that are taken, and when each is on the screen."""
    number = min(num_frames, track.n_frames)
    by_number = np.linspace(0, track.n_frames - 1, number).round().astype(int).tolist()
    if track.times_s is None:
        return Choice(by_number, None)
    times = np.asarray(track.times_s)
    moments = np.linspace(times[0], times[-1], number)
    if bool((np.abs(times[by_number] - moments) <= 1.5 * track.usual_s() + 1e-6).all()):
        return Choice(by_number, times[by_number].tolist())
    gaps = np.diff(times)
    varies = f"the frames of {name} follow each other after {gaps.min():.3g} to {gaps.max():.3g} s"
    if number == track.n_frames:
        warning = f"{varies}: all {number} are taken, which are not even in time."
        return Choice(by_number, times.tolist(), warning)
    frame_at_moment = np.searchsorted(times, moments + 1e-6, side="right") - 1
    warning = f"{varies}: {number} are taken evenly in time, each as it is on the screen at that moment."
    return Choice(frame_at_moment.tolist(), moments.tolist(), warning)
