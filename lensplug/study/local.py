"""Running a study on this machine, in one process for each device.

Processes are started anew (`python -m lensplug study run`), never forked: CUDA and PyAV do not survive a fork.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from lensplug.errors import LensplugError
from lensplug.study.progress import Progress
from lensplug.study.supervision import supervise

WORKER = "LENSPLUG_STUDY_WORKER"
"""Set in the environment of a process that works for another: no progress bar, no waiting."""
ARRAY_TASKS = (("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN"), ("SGE_TASK_ID", "SGE_TASK_FIRST"))
"""What the environment of a task of an array job says: which it is, and which is the first."""


def checks_results() -> bool:
    """Whether this process reads all results when it starts, to find those that are broken.

    One is enough: none that works for another does, and of an array job's tasks the first.
    """
    further = [os.environ[task] != os.environ[first] for task, first in ARRAY_TASKS if {task, first} <= {*os.environ}]
    return WORKER not in os.environ and not any(further)


def devices_of(devices: str | Sequence[str] | None) -> list[str | None]:
    """The devices to use: [None] for one, as `lensplug.load` chooses it."""
    if devices is None:
        return [None]
    if devices != "all":
        return [devices] if isinstance(devices, str) else list(devices)
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or [None]


def run_processes(address: str, devices: Sequence[str | None], options: Mapping[str, Any], progress: Progress) -> None:
    """Work on a study with one process for each device, until every chunk is done.

    Raises:
        LensplugError: If processes keep dying, or one ends with an error.
    """
    free = list(devices)

    def start(count: int) -> list[_Process]:
        return [_Process(address, free, options) for _ in range(count)]

    supervise(start, len(devices), progress)


class _Process:
    """A process that works on a study, and what it says."""

    def __init__(self, address: str, free: list[str | None], options: Mapping[str, Any]) -> None:
        """Start it on the first of the free devices, which is free again when it has ended."""
        self._free, self._device = free, free.pop(0)
        command = [sys.executable, "-m", "lensplug", "study", "run", address]
        command += [] if self._device is None else ["--device", self._device]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        self._said = tempfile.TemporaryFile()  # a pipe that nobody reads would stop it when it is full
        self._process = subprocess.Popen(
            command, env={**os.environ, WORKER: "1"}, stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said
        )

    def ended(self) -> str | None:
        """How it ended; None while it runs.

        Raises:
            LensplugError: If it ended with an error of lensplug's.
        """
        code = self._process.poll()
        if not code:
            return None if code is None else ""
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        if code == 2:
            raise LensplugError(said.rpartition("lensplug: ")[2] or "a process of this study ended with an error.")
        return f"with the code {code}, and these words: {said[-500:] or 'none'}"

    def ask_to_end(self) -> None:
        """Ask it to end, unless it has ended."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def end(self, longest_s: float) -> None:
        """Wait for its end, and end it."""
        try:
            self._process.wait(longest_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self._said.closed:
            self._said.close()
            self._free.append(self._device)
