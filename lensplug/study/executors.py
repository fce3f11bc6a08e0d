"""Where a study runs: processes on this machine, a Ray cluster, or SLURM.

Whoever distributes the work only starts processes; which chunk is whose, and what is done, is in the files. So an
executor may start, repeat and kill as it likes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from lensplug.errors import LensplugError
from lensplug.study.local import run_processes
from lensplug.study.progress import Progress

MODULES = {"ray": "lensplug.study.ray_executor", "slurm": "lensplug.study.slurm_executor"}
"""Executor -> the module whose function `run` distributes the work."""


def run(
    executor: str,
    address: str,
    devices: Sequence[str | None],
    settings: Mapping[str, Any],
    progress: Progress,
    options: Mapping[str, Any],
) -> None:
    """Run a study elsewhere than in this process, until every chunk is done.

    Args:
        executor: "local", "ray" or "slurm".
        address: The study's folder, which every process must see under this name.
        devices: For "local", one process each.
        settings: Options of `study.run` for each process.
        progress: To be looked at now and then.
        options: The executor's own: see `lensplug.study.ray_executor`, `lensplug.study.slurm_executor`.

    Raises:
        LensplugError: If its package is not installed, an option is unknown, or processes keep dying.
    """
    if executor == "local":
        run_processes(address, devices, settings, progress)
        return
    if list(devices) != [None]:
        raise LensplugError(f"devices= are this machine's: executor={executor!r} places workers itself, workers=...")
    import_module(MODULES[executor]).run(address, settings, progress, **options)
