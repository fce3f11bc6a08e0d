"""Shared by the worker programs in this folder: the limits, and the request loop."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Callable
from typing import Any


def limit(megabytes: int) -> None:
    """Take no more memory than that, where the system supports it (not on Windows)."""
    try:
        import resource
    except ImportError:
        return
    for name, most in (("RLIMIT_AS", megabytes << 20), ("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 0)):
        if hasattr(resource, name):
            try:
                resource.setrlimit(getattr(resource, name), (most, most))
            except (ValueError, OSError):  # some systems know the name alone
                pass


def begin() -> None:
    """Take the limit, and where packages are, from the command line."""
    limit(int(sys.argv[1]))
    sys.path += sys.argv[2:]


def serve(answer: Callable[[Any], Any]) -> None:
    """Answer each line of the input, [seconds, request], with one: {"answer": ...}, or {"error": words, "kind": ...}.

    The process ends if an answer takes longer than that.
    """
    requests, answers = sys.stdin, sys.stdout
    sys.stdin = sys.stdout = None
    nowhere = open(os.devnull, "w")  # noqa: SIM115,  open as long as the process is
    for line in requests:
        try:
            seconds, request = json.loads(line)
            # A thread in C, which one long call of Python's, a regular expression's, does not keep from its end.
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            reply = json.dumps({"answer": answer(request)})
        except MemoryError:
            reply = json.dumps({"error": "it takes more memory than it may", "kind": "MemoryError"})
        except Exception as error:  # noqa: BLE001
            reply = json.dumps({"error": str(error)[:2000], "kind": type(error).__name__})
        faulthandler.cancel_dump_traceback_later()
        answers.write(reply + "\n")
        answers.flush()
