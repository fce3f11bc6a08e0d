"""Ctrl-C and SIGTERM end the command with one line at any moment: during an import, a run, or while writing.

A signal raises an exception, so that unfinished files are cleaned up as it propagates, and is recorded: if a library
swallows the exception (takes it for a failed import, say), the command still ends. While the exception propagates,
further signals do not interrupt the cleanup; if it was swallowed, it is raised again.

Only the command installs these handlers, never a process that imports lensplug. This module is imported first and
imports almost nothing: signals before `watch` are not handled.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

ENDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up", "SIGXCPU": "out of CPU time"}
"""Signal -> the word printed for it. Signals that the platform lacks, or that are ignored (nohup), are skipped."""
AGAIN_S = 0.1
"""Interval at which to check whether the exception is still propagating, in seconds."""
INSISTED = 3
"""Number of signals after which the cleanup is interrupted too."""

_came: list[int] = []
"""The signals received so far."""
_watched: list[int] = []


class Signalled(BaseException):
    """Raised when a signal arrives; caught neither by `except Exception` nor by click's handler for Ctrl-C."""


def watch() -> None:
    """Install the handlers: from here on signals end the command through `end`."""
    for name in ENDS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
            _watched.append(number)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave)


def came() -> bool:
    """Whether a signal was received."""
    return bool(_came)


def ignore() -> None:
    """Ignore further signals: the work is done, or the command is ending."""
    for number in _watched:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def end() -> NoReturn:
    """Print one line and exit with the code that shells use for the signal.

    The interpreter is not shut down normally, which half-imported modules and running threads do not survive; exit
    handlers are run.
    """
    ignore()
    _quiet()
    try:
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:  # a closed pipe, or a library interrupted midway: nothing more can be reported
        pass
    word = next(word for name, word in ENDS.items() if getattr(signal, name, None) == _came[0])
    try:
        os.write(2, f"lensplug: {word}\n".encode())
    except OSError:
        pass
    os._exit(128 + _came[0])


def _on_signal(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    if len(_came) == 1:
        _quiet()
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, _again)
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S, AGAIN_S)
    if len(_came) >= INSISTED or not _on_its_way():
        raise Signalled


def _again(number: int, frame: FrameType | None) -> None:
    if not _on_its_way():
        raise Signalled


def _on_its_way() -> bool:
    """Whether the exception, or one caused by it, is still propagating."""
    waiting, visited = [sys.exc_info()[1]], set()
    while waiting:
        error = waiting.pop()
        if isinstance(error, Signalled):
            return True
        if error is not None and id(error) not in visited:
            visited.add(id(error))
            waiting += [error.__cause__, error.__context__]
    return False


def _quiet() -> None:
    """Suppress all output but the one line, including unraisable exceptions."""

    def nothing(*_: Any) -> None:
        pass

    sys.excepthook = sys.unraisablehook = nothing
    if not sys.stderr or sys.stderr.name != os.devnull:
        sys.stderr = open(os.devnull, "w")


def _leave() -> None:
    """A forked child restores the default handlers."""
    for number in _watched:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
