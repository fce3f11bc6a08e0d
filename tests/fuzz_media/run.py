"""Mutated files in a process of their own, that may crash, hang or fill its memory: which file it was is then known."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from fuzz_media.mutate import mutated
from fuzz_media.repair import REPAIRS
from fuzz_media.seeds import SEEDS, seeds_of
from lensplug.errors import LensplugError
from lensplug.media import load_image, load_sound, load_video

SLOW_S = 5.0
"""Of its processor's time, and the clock may show four times that: others compute here too."""
MEMORY = 3 * 2**30
"""What a process may take beside what it had when it began: the limit for a medium is 1 GiB of it."""


@dataclass
class Row:
    """What came of the files of one kind."""

    kind: str
    tried: int = 0
    refused: int = 0
    read: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    """Of the slowest."""
    memory: int = 0
    """Bytes, the most that a process took beside what it began with."""
    messages: list[str] = field(default_factory=list)

    def fails(self, number: int, seed: int, what: str, details: str = "") -> None:
        self.failures[what] += 1
        if self.failures[what] <= 3:
            again = f"PYTHONPATH=tests python -m fuzz_media --seed {seed} --only '{self.kind}' --file {number}"
            self.messages.append(f"{self.kind}: {what}{details}\n    again: {again}")


def content_of(kind: str, number: int, seed: int) -> bytes:
    """The numbered file of a kind; of two, one has its checksums put right again, where a kind has any."""
    content = mutated(seeds_of(kind), random.Random(f"{seed}/{kind}/{number}"))
    return REPAIRS[kind](content) if kind in REPAIRS and number % 2 else content


def read(kind: str, content: bytes) -> None:
    """As a user's file is read."""
    load: dict[str, Callable[[bytes], object]] = {"image": load_image, "sound": load_sound, "video": load_video}
    load[next(group for group, kinds in SEEDS.items() if kind in kinds)](content)


def run_kind(kind: str, files: int, seed: int) -> Row:
    """All numbered files of a kind, in as many processes as it takes."""
    row, number = Row(kind), 0
    seeds_of(kind)
    while number < files:
        number = _run_from(row, number, files, seed)
    return row


def _run_from(row: Row, number: int, files: int, seed: int) -> int:
    """The next that is to be tried, behind the one at which the process ended."""
    context = multiprocessing.get_context("fork")  # what is imported takes seconds
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, row.kind, number, files, seed))
    process.start()
    there.close()
    try:
        while number < files:
            row.tried += 1
            if not here.poll(4 * SLOW_S):
                row.fails(number, seed, "hangs")
                return number + 1
            outcome, details, seconds, memory = here.recv()
            row.seconds, row.memory = max(row.seconds, seconds), max(row.memory, memory)
            if outcome == "refused":
                row.refused += 1
            elif outcome == "read":
                row.read += 1
            else:
                row.fails(number, seed, outcome, details)
            number += 1
    except EOFError:
        process.join()
        row.fails(number, seed, f"crash {process.exitcode}")
        return number + 1
    finally:
        process.kill()
        process.join()
        here.close()
    return number


def _work(pipe: Connection, kind: str, first: int, files: int, seed: int) -> None:
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # libmpg123 writes there of everything that it sees
    began = _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (began + MEMORY, began + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = _peak()
    for number in range(first, files):
        content = content_of(kind, number, seed)
        start = time.process_time()
        outcome, details = _outcome(kind, content)
        seconds = time.process_time() - start
        if seconds > SLOW_S and outcome in ("read", "refused"):
            outcome, details = "slow", f": {seconds:.1f} s"
        pipe.send((outcome, details, seconds, _peak() - before))


def _outcome(kind: str, content: bytes) -> tuple[str, str]:
    try:
        read(kind, content)
    except LensplugError:
        return "refused", ""
    except BaseException as error:  # noqa: B036  whatever it is, it is not what a user should see
        return type(error).__name__, f": {str(error)[:200]}"
    return "read", ""


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _peak() -> int:
    """Bytes; macOS counts in bytes, Linux in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
