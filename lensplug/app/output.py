"""Whether what a command prints still has somewhere to go."""

from __future__ import annotations

import errno


def output_is_gone(error: BaseException) -> bool:
    """Whether an error says that the standard output has no reader any more, or no room.

    Of a file that lensplug writes, no room is a LensplugError.
    """
    return isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
