"""Runs that will take minutes say so before they start: how many, and how long, from those that were timed."""

from __future__ import annotations

import warnings

from lensplug.errors import LensplugWarning

LONG_S = 60.0
"""What takes less is not worth a sentence."""


def announce(what: str, runs: int, seconds: float, *, shorter: str) -> None:
    """Warn if the runs that are to come will take longer than a minute.

    Args:
        what: Who runs them.
        runs: How many are to come.
        seconds: That one takes.
        shorter: How to make them fewer.
    """
    expected = runs * seconds
    if expected > LONG_S:
        warnings.warn(
            f"{what}: {runs} runs to come, about {expected / 60:.0f} minutes (one takes {seconds:.1f} s). Fewer with"
            f" {shorter}.",
            LensplugWarning,
            stacklevel=3,
        )
