"""Worker subprocesses with limits of time and memory.

Untrusted model files can make Python run forever inside one call: a chat template that doubles a text, a regular
expression with catastrophic backtracking. Threads cannot be stopped, processes can. A worker stays alive and answers
one request after another (JSON lines), so that further requests cost less than a millisecond. Its limits are its own
(`serving`): it ends itself where a request takes too long, and nothing has to be watched here.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

SECONDS = 5.0
"""For one request."""
MEGABYTES = 1024
"""Address space limit, in megabytes."""


class ChildError(Exception):
    """The program ended, or was ended, before it had answered."""


class Child:
    """A program of this folder, started with the first request; one request at a time.

    Args:
        program: Its file; it imports nothing of lensplug.
        packages: Files of the packages that it imports, such as `jinja2.__file__`.
    """

    def __init__(self, program: str, *packages: str) -> None:
        """Nothing is started yet."""
        self.program = str(Path(__file__).with_name(program))
        self.folders = [str(Path(package).parents[1]) for package in packages]
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.owner = 0

    def ask(self, request: Any) -> Any:
        """The program's answer.

        Raises:
            ChildError: If it has none within the limits; the next request restarts it.
        """
        with self.lock:
            process = self._running()
            started = time.monotonic()
            try:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(json.dumps([SECONDS, request]) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line.endswith("\n"):
                    raise ChildError("it ended")
            except BaseException as error:  # an interrupt too: half an answer would be taken for the next one's
                timed_out = time.monotonic() - started >= SECONDS
                self.close()
                if isinstance(error, OSError | ChildError):
                    ended = f"it ended, as for want of memory ({MEGABYTES} MB)"
                    raise ChildError(f"it took more than {SECONDS:.0f} seconds" if timed_out else ended) from error
                raise
            return json.loads(line)

    def close(self) -> None:
        """End the program."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return  # after a fork it is the parent's
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was not sent has nowhere to go
                    pass

    def _running(self) -> subprocess.Popen[str]:
        if self.process is not None and (self.owner != os.getpid() or self.process.poll() is not None):
            self.close()
        if self.process is None:
            command = [sys.executable, "-S", "-E", "-s", self.program, str(MEGABYTES), *self.folders]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="ascii",
                start_new_session=os.name == "posix",  # an interrupt from the keyboard is for this process alone
            )
            self.owner = os.getpid()
            atexit.unregister(self.close)
            atexit.register(self.close)
        return self.process
