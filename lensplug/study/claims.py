"""Who is at work on which chunk, so that two processes do not do the same; and what they were at when they died.

A claim is a file that names its process and the examples that it runs at the moment. It prevents double work, and
nothing depends on it: a chunk is done if and only if its file of results exists, and all claims may be deleted at any
time. The claim of a process that died becomes the record of its death, by which an example that kills its process is
found: a batch that was running in two deaths is run one by one, and an example that dies alone is set aside.

Each claim has a number of its own, by which a process sees that another has taken its place: because it was not seen to
be alive for too long, or because both claimed a chunk at one moment where the file system allows it.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from lensplug.errors import LensplugError
from lensplug.study.processes import is_alive, this_process
from lensplug.study.storage import Storage

FOLDER = "claims"
DIED = ".died-"
STALE_S = 300.0
"""Another machine's claim that nobody renewed for this time belongs to a dead process."""
RENEW_S = 30.0
SUSPECT = 2
"""Deaths after which the examples of a batch are run one by one."""

_numbers_here: set[str] = set()
"""The claims of this process. A claim of this process that is not among them was left behind by an interruption."""


class Claims:
    """The claims of one process on the chunks of a pass."""

    def __init__(self, storage: Storage, pass_key: str) -> None:
        """Nothing is written."""
        self.storage = storage
        self.folder = f"{FOLDER}/{pass_key}"
        self.process = this_process()
        self._mine: dict[str, dict[str, Any]] = {}
        self._writing = threading.Lock()

    def taken(self, chunk: str) -> bool:
        """Claim a chunk, unless a living process has it."""
        claim = {**self.process, "number": secrets.token_hex(8), "examples": []}
        self._mine[chunk] = claim
        _numbers_here.add(claim["number"])
        name = self._name(chunk)
        if self.storage.create(name, _bytes(claim)) or self._taken_over(name, claim):
            return True
        self._forget(chunk)
        return False

    def running(self, chunk: str, examples: Sequence[str]) -> bool:
        """Note which examples run now; False if another process has taken the chunk over."""
        with self._writing:
            if not self.holds(chunk):
                return False
            self._mine[chunk]["examples"] = list(examples)
            self.storage.note(self._name(chunk), _bytes(self._mine[chunk]))
        return True

    def holds(self, chunk: str) -> bool:
        """Whether the claim is still this process's; if it was deleted, it is made again."""
        there = _read(self.storage, self._name(chunk))
        if there is None:
            return self.storage.create(self._name(chunk), _bytes(self._mine[chunk]))
        return bool(there.get("number") == self._mine[chunk]["number"])

    def released(self, chunk: str) -> None:
        """Give a chunk back, unless another process has taken it over."""
        if chunk not in self._mine:
            return
        number = self._forget(chunk)
        there = _read(self.storage, self._name(chunk))
        if there is not None and there.get("number") == number:
            self.storage.remove(self._name(chunk))

    def released_all(self) -> None:
        """Give every chunk back."""
        for chunk in list(self._mine):
            self.released(chunk)

    def at_work(self) -> list[str]:
        """The chunks that living processes have claimed."""
        chunks = [name for name in self.storage.names(self.folder) if DIED not in name]
        return [chunk for chunk in chunks if self.is_claimed(chunk)]

    def is_claimed(self, chunk: str) -> bool:
        """Whether a living process has a chunk."""
        there = _read(self.storage, self._name(chunk))
        return there is not None and self._is_alive(self._name(chunk), there)

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
                examples = (_read(self.storage, f"{self.folder}/{name}") or {}).get("examples", ())
                counts.update(examples)
                alone.update(examples if len(examples) == 1 else ())
        return counts, {example for example, count in counts.items() if count >= SUSPECT and alone[example]}

    @contextmanager
    def renewed(self, chunk: str) -> Iterator[None]:
        """Renew a claim while the block runs, for other machines to see."""
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(RENEW_S):
                with suppress(OSError, LensplugError), self._writing:  # the next time may go better
                    if self.holds(chunk):
                        self.storage.note(self._name(chunk), _bytes(self._mine[chunk]))

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _taken_over(self, name: str, claim: dict[str, Any]) -> bool:
        """Claim what a process left that is dead, and record its death.

        Of several that try, one renames the claim. A slower one may rename what the faster has written since: it puts
        that back.
        """
        there = _read(self.storage, name)
        if there is None or self._is_alive(name, there):
            return False
        died = f"{name}{DIED}{secrets.token_hex(4)}"
        if not self.storage.rename(name, died):
            return False
        renamed = _read(self.storage, died) or {}
        if renamed.get("number") != there.get("number"):
            self.storage.create(name, _bytes(renamed))
            self.storage.remove(died)
            return False
        if there.get("pid") == os.getpid() and is_alive(there):
            self.storage.remove(died)  # left behind by an interruption of this process, which lives
        return self.storage.create(name, _bytes(claim))

    def _is_alive(self, name: str, claim: dict[str, Any]) -> bool:
        seen = is_alive(claim)
        if seen is None:
            return self.storage.age(name) < STALE_S
        return seen and (claim["pid"] != os.getpid() or claim.get("number") in _numbers_here)

    def _forget(self, chunk: str) -> str:
        number = str(self._mine[chunk]["number"])
        _numbers_here.discard(number)
        del self._mine[chunk]
        return number

    def _name(self, chunk: str) -> str:
        return f"{self.folder}/{chunk}"


def _bytes(claim: dict[str, Any]) -> bytes:
    return json.dumps(claim).encode()


def _read(storage: Storage, name: str) -> dict[str, Any] | None:
    """A claim; None where there is none, and empty where it cannot be read."""
    try:
        content = json.loads(storage.read(name))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
