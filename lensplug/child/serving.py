"""Shared by the worker programs in this folder: the limits, and the request loop."""

from __future__ import annotations

import json
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
    """Answer each line of the input with one of the output: {"answer": ...}, or {"error": the words, "kind": ...}."""
    requests, answers = sys.stdin, sys.stdout
    sys.stdin = sys.stdout = None
    for line in requests:
        try:
            reply = json.dumps({"answer": answer(json.loads(line))})
        except MemoryError:
            reply = json.dumps({"error": "it takes more memory than it may", "kind": "MemoryError"})
        except Exception as error:  # noqa: BLE001
            reply = json.dumps({"error": str(error)[:2000], "kind": type(error).__name__})
        answers.write(reply + "\n")
        answers.flush()
