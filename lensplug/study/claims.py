"""Who is at work on which chunk, so that two processes do not do the same; and what they were at when they died.

A claim is a file that names its process and the examples that it runs at the moment. It prevents double work, and
nothing depends on it: a chunk is done if and only if its file of results exists, and all claims may be deleted at any
time. The claim of a process that died becomes the record of its death, by which an example that kills its process is
found: a batch that was running in two deaths is run one by one, and an example that dies alone is set aside.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from lensplug.study.storage import Storage

FOLDER = "claims"
DIED = ".died-"
STALE_S = 300.0
"""Another machine's claim that nobody renewed for this time belongs to a dead process."""
RENEW_S = 30.0
SUSPECT = 2
"""Deaths after which the examples of a batch are run one by one."""


class Claims:
    """The claims of one process on the chunks of a pass."""

    def __init__(self, storage: Storage, pass_key: str) -> None:
        """Nothing is written."""
        self.storage = storage
        self.folder = f"{FOLDER}/{pass_key}"
        process = psutil.Process()
        self.process = {"node": socket.gethostname(), "pid": process.pid, "started": process.create_time()}

    def taken(self, chunk: str) -> bool:
        """Claim a chunk, unless a living process has it."""
        name = f"{self.folder}/{chunk}"
        if self.storage.create(name, self._content(())):
            return True
        if self._is_alive(name):
            return False
        died = f"{name}{DIED}{secrets.token_hex(4)}"
        return self.storage.rename(name, died) and self.storage.create(name, self._content(()))

    def running(self, chunk: str, examples: Sequence[str]) -> None:
        """Note which examples run now."""
        self.storage.note(f"{self.folder}/{chunk}", self._content(examples))

    def released(self, chunk: str) -> None:
        """Give a chunk back; the records of deaths go with a chunk that is done."""
        self.storage.remove(f"{self.folder}/{chunk}")

    def forget_deaths(self, chunk: str) -> None:
        """Delete the records of deaths: the chunk is done."""
        for name in self.storage.names(self.folder):
            if name.startswith(f"{chunk}{DIED}"):
                self.storage.remove(f"{self.folder}/{name}")

    def deaths(self, chunk: str) -> tuple[Counter[str], set[str]]:
        """In how many deaths each example was running, and which examples died alone after they were suspected."""
        counts: Counter[str] = Counter()
        alone: Counter[str] = Counter()
        for name in self.storage.names(self.folder):
            if name.startswith(f"{chunk}{DIED}"):
                examples = _examples(self.storage, f"{self.folder}/{name}")
                counts.update(examples)
                alone.update(examples if len(examples) == 1 else ())
        return counts, {example for example, count in counts.items() if count >= SUSPECT and alone[example]}

    @contextmanager
    def renewed(self, chunk: str) -> Iterator[None]:
        """Renew a claim while the block runs, for other machines to see."""
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(RENEW_S):
                self.storage.touch(f"{self.folder}/{chunk}")

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _is_alive(self, name: str) -> bool:
        claim = _read(self.storage, name)
        if claim.get("node") != self.process["node"]:
            return self.storage.age(name) < STALE_S
        if claim.get("pid") == os.getpid():
            return bool(claim.get("started") == self.process["started"])
        try:
            process = psutil.Process(claim["pid"])
            is_same = bool(process.create_time() == claim["started"])
            return is_same and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, KeyError):
            return False

    def _content(self, examples: Sequence[str]) -> bytes:
        return json.dumps({**self.process, "examples": list(examples)}).encode()


def _read(storage: Storage, name: str) -> dict[str, Any]:
    try:
        content = json.loads(storage.read(name))
    except (FileNotFoundError, ValueError):  # gone meanwhile, or its process died while it wrote it
        return {}
    return content if isinstance(content, dict) else {}


def _examples(storage: Storage, name: str) -> list[str]:
    return list(_read(storage, name).get("examples", ()))
