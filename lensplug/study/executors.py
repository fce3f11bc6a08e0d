"""Where a study runs: processes on this machine, a Ray cluster, or SLURM.

Whoever distributes the work only starts processes; which chunk is whose, and what is done, is in the files. So an
executor may start, repeat and kill as it likes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from lensplug.errors import LensplugError
from lensplug.study.local import Progress, run_processes


def run(
    executor: str,
    place: str,
    devices: Sequence[str | None],
    settings: Mapping[str, Any],
    progress: Progress,
    options: Mapping[str, Any],
) -> None:
    """Run a study elsewhere than in this process, until every chunk is done.

    Args:
        executor: "local", "ray" or "slurm".
        place: The study's folder, which every process must see under this name.
        devices: For "local", one process each.
        settings: Options of `study.run` for each process.
        progress: To be looked at now and then.
        options: The executor's own.

    Raises:
        LensplugError: If its package is not installed, an option is unknown, or processes keep dying.
    """
    if executor == "local":
        if options:
            raise LensplugError(f"run takes no {next(iter(options))!r} with executor='local'.")
        run_processes(place, devices, settings, progress)
        return
    import_module(f"lensplug.study.{executor}").run(place, settings, progress, **options)
