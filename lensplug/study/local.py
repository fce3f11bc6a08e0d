"""Running a pass on this machine: in this process, or in one process for each device.

Processes are started anew (`python -m lensplug study run`), never forked: CUDA and PyAV do not survive a fork. One that
dies is started again, as long as chunks are finished in between.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from lensplug.errors import LensplugError
from lensplug.study.passes import Pass
from lensplug.study.storage import Storage

POLL_S = 0.2
DEATHS_IN_A_ROW = 5
"""Processes that died without a chunk finished in between: then it is not the examples."""
WORKER = "LENSPLUG_STUDY_WORKER"
"""Set in the environment of a process that works for another: no progress bar, no waiting."""


@dataclass
class Progress:
    """The progress bar of a run: examples, their rate, the time left."""

    counts: Mapping[str, int]
    """Chunk -> how many examples it has."""
    running: Pass
    storage: Storage
    shown: bool = True

    def __enter__(self) -> Progress:
        names = ", ".join(measurement.name for measurement in self.running.measurements)
        self.bar = tqdm(
            total=sum(self.counts.values()), desc=names, unit="example", disable=None if self.shown else True
        )
        self.bar.update(self._done())
        self.bar.initial = self.bar.n  # the rate is of this run
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def look(self) -> int:
        """Show the chunks that are done now, whoever did them; how many there are."""
        self.bar.update(self._done() - self.bar.n)
        return len(self.running.done(self.storage) & self.counts.keys())

    def _done(self) -> int:
        return sum(self.counts[chunk] for chunk in self.running.done(self.storage) if chunk in self.counts)


def devices_of(devices: str | Sequence[str] | None) -> list[str | None]:
    """The devices to use: [None] for one, as `lensplug.load` chooses it."""
    if devices is None:
        return [None]
    if devices != "all":
        return [devices] if isinstance(devices, str) else list(devices)
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or [None]


def run_processes(place: str, devices: Sequence[str | None], options: Mapping[str, Any], progress: Progress) -> None:
    """Work on the passes of a study with one process for each device, until every chunk is done.

    Raises:
        LensplugError: If processes keep dying, or one ends with an error.
    """
    workers: dict[int, _Process] = {}
    deaths, done = 0, progress.look()
    try:
        while done < len(progress.counts):
            for index, device in enumerate(devices):
                worker = workers.get(index)
                if worker is None or worker.code not in (None, 0):
                    if worker is not None:
                        deaths += 1
                        worker.refuse_to_go_on(deaths)
                    workers[index] = _Process(place, device, options)
            time.sleep(POLL_S)
            now = progress.look()
            deaths, done = (0 if now > done else deaths), now
            if all(worker.code == 0 for worker in workers.values()) and done < len(progress.counts):
                workers = {}  # chunks whose process died after the others had looked
    finally:
        for worker in workers.values():
            worker.end()


class _Process:
    """A process that works on a study, and what it says."""

    def __init__(self, place: str, device: str | None, options: Mapping[str, Any]) -> None:
        command = [sys.executable, "-m", "lensplug", "study", "run", place]
        command += [] if device is None else ["--device", device]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        self._said = tempfile.TemporaryFile()  # a pipe that nobody reads would stop it when it is full
        self._process = subprocess.Popen(
            command, env={**os.environ, WORKER: "1"}, stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said
        )

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """End it, unless it has ended."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        self._process.wait()
        self._said.close()

    def refuse_to_go_on(self, deaths: int) -> None:
        """Raise if it ended with an error of lensplug's, which the next would meet too, or too many died.

        Raises:
            LensplugError: Then, with what it said last.
        """
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        self.end()
        if self._process.returncode == 2:
            raise LensplugError(said.rpartition("lensplug: ")[2] or "a process of this study ended with an error.")
        if deaths >= DEATHS_IN_A_ROW:
            raise LensplugError(
                f"{deaths} processes of this study died, and no chunk was finished in between; the last with the code"
                f" {self._process.returncode}, and these words: {said[-500:] or 'none'}"
            )
