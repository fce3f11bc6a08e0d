"""How much memory reading one image, video or sound may take: a small file can hold what fills a machine.

    lensplug.media.set_memory_limit("4 GB")           # from now on
    with lensplug.media.set_memory_limit("4 GB"):     # here only
        ...

In a shell, and so for the command line: `export LENSPLUG_MEDIA_MEMORY=4GB`. Unless it is changed the limit is 1 GiB
(1.07 GB) for each medium: an image of 89 megapixels (12 bytes a pixel, where Pillow too begins to warn), 16 frames of
4K, a sound of one hour and 40 minutes at 44.1 kHz or of four hours and a half at 16 kHz. It is checked against a
file's declared size before decoding, and against the actual size while decoding. Data already in memory, such as
arrays, has no limit.
"""

from __future__ import annotations

import math
import os
import re
from contextlib import ExitStack

from lensplug.errors import LensplugError
from lensplug.validation.arguments import checked

DEFAULT = 2**30
VARIABLE = "LENSPLUG_MEDIA_MEMORY"
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", re.IGNORECASE)

_limit: int | None = None
"""None until it is set."""


@checked
def set_memory_limit(size: int | str) -> ExitStack:
    """How much memory reading one image, video or sound may take, from now on.

    Args:
        size: Bytes, or a text such as "4 GB" (10^9 bytes) or "4 GiB" (2^30).

    Returns:
        What puts the limit before it back at the end of a `with`; it need not be used.

    Raises:
        LensplugError: If that is no size.
    """
    global _limit
    before, _limit = _limit, _bytes_of(size, "the memory limit")
    ending = ExitStack()
    ending.callback(_put_back, before)
    return ending


def memory_limit() -> int:
    """The limit that holds now, in bytes.

    Raises:
        LensplugError: If the environment names one that is no size.
    """
    if _limit is not None:
        return _limit
    from_environment = os.environ.get(VARIABLE, "")
    return _bytes_of(from_environment, VARIABLE) if from_environment.strip() else DEFAULT


def refuse_beyond_limit(n_bytes: int, what: str, instead: str) -> None:
    """Refuse what would take more than the limit.

    Args:
        n_bytes: What reading it takes.
        what: What it is, and how large.
        instead: What to do, other than to raise the limit.

    Raises:
        LensplugError: If it is more.
    """
    limit = memory_limit()
    if n_bytes <= limit:
        return
    enough = math.ceil(n_bytes / 1e8) / 10
    raise LensplugError(
        f"{what}, which takes {in_words(n_bytes)} to read, and one medium may take {in_words(limit)}: {instead},"
        f" or allow it: lensplug.media.set_memory_limit('{enough} GB'), or {VARIABLE}={enough}GB in the shell."
    )


def in_words(n_bytes: int) -> str:
    """A size in MB or GB, as text."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def _put_back(before: int | None) -> None:
    global _limit
    _limit = before


def _bytes_of(size: int | str, name: str) -> int:
    match = SIZE.fullmatch(str(size))
    n_bytes = round(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if n_bytes < 1:
        raise LensplugError(f"{name} is {size!r}, expected bytes, or a text such as '4 GB'.")
    return n_bytes
