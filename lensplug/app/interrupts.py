"""Ctrl-C and SIGTERM end the command in one line, wherever it stands: in an import, in a run, while it writes.

A signal becomes an exception, so that whatever is unfinished is taken away on its way out, and is remembered: what
became of the exception (a library that takes it for a failed import, one that drops it) changes nothing about the end.
While it is on its way out, more signals do not stop the clearing up. Where it was dropped, it is raised again.

Of the command alone: nothing here happens in a process that imports lensplug. This module is imported before all others
and imports next to nothing: what comes before `watch` is not watched.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

ENDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up", "SIGXCPU": "out of CPU time"}
"""Signal -> the word for it. Those that the system has, and that were not to be ignored (nohup)."""
AGAIN_S = 0.1
"""After so long it is looked whether the exception is still on its way."""
INSISTED = 3
"""So many signals stop the clearing up too."""

_came: list[int] = []
"""The signals so far."""
_watched: list[int] = []


class Signalled(BaseException):
    """Raised where the command stands when a signal comes; no `except Exception` keeps it, nor click's for Ctrl-C."""


def watch() -> None:
    """From here on signals end the command by `end`."""
    for name in ENDS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
            _watched.append(number)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave)


def came() -> bool:
    """Whether a signal has come."""
    return bool(_came)


def ignore() -> None:
    """From here on signals do nothing: all is done, or the command ends anyway."""
    for number in _watched:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def end() -> NoReturn:
    """The one line, and the exit code that shells give a signal.

    The interpreter is not shut down: modules that are imported half, and threads in the middle of something, do not
    survive that. What was to be done at the exit is done.
    """
    ignore()
    _quiet()
    try:
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:  # a closed pipe, a library that was interrupted half: there is no one left to tell
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
    """Whether what runs is an `except`, `finally` or `with` that the exception passes, or one that came of it."""
    waiting, seen = [sys.exc_info()[1]], set()
    while waiting:
        error = waiting.pop()
        if isinstance(error, Signalled):
            return True
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            waiting += [error.__cause__, error.__context__]
    return False


def _quiet() -> None:
    """Nothing is said but the one line: not what an exception met on its way, nor where nobody could take it."""

    def nothing(*_: Any) -> None:
        pass

    sys.excepthook = sys.unraisablehook = nothing
    if not sys.stderr or sys.stderr.name != os.devnull:
        sys.stderr = open(os.devnull, "w")


def _leave() -> None:
    """A process that parts from this one is not the command."""
    for number in _watched:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
