"""A study on a SLURM cluster, by jobs that submitit hands in.

    study.run(executor="slurm", workers=16, timeout_min=240, slurm_partition="gpu", mem_gb=64)

A job that reaches its time limit or is preempted gives its chunk back and is queued again; one that dies is replaced.
The study's folder must be visible to all machines under the same path. What jobs say is in `logs/` of the study.

Nothing needs this module: an array job of the command does the same, and may be submitted again at any time.

    #!/bin/bash
    #SBATCH --job-name=flowers-color
    #SBATCH --array=0-15
    #SBATCH --gpus-per-node=1
    #SBATCH --cpus-per-task=8
    #SBATCH --mem=64G
    #SBATCH --time=4:00:00
    #SBATCH --requeue                # where jobs are preempted
    #SBATCH --signal=TERM@60         # a minute before the limit: it gives its chunk back
    #SBATCH --output=%x-%a.log
    #SBATCH --open-mode=append
    srun lensplug study run /shared/flowers-color --device cuda
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lensplug.errors import LensplugError
from lensplug.study.local import WORKER
from lensplug.study.progress import Progress
from lensplug.study.supervision import supervise
from lensplug.validation.arguments import at_least, checked

POLL_S = 1.0
REQUEUED = 1000
"""How often a job may reach its time limit: it is queued again, where it goes on with other chunks."""


@checked
def run(
    place: str,
    settings: Mapping[str, Any],
    progress: Progress,
    /,
    *,
    workers: int = 1,
    timeout_min: int = 240,
    slurm_partition: str | None = None,
    gpus_per_node: int = 1,
    mem_gb: float | None = None,
    logs: str | Path | None = None,
    cluster: Literal["slurm", "local", "debug"] = "slurm",
    **parameters: Any,
) -> None:
    """Work on a study with jobs, until every chunk is done.

    Args:
        place: The study's folder.
        settings: Options of `study.run` for each job.
        progress: To be looked at.
        workers: How many jobs.
        timeout_min: The time limit of a job; it is queued again when it reaches it.
        slurm_partition: Where they run.
        gpus_per_node: GPUs of a job, which uses one.
        mem_gb: Memory of a job.
        logs: A folder for what jobs say, which all machines see; `logs` in the study by default.
        cluster: "local" runs the jobs on this machine, to try it.
        **parameters: Any of submitit's `AutoExecutor.update_parameters`: cpus_per_task, slurm_account, slurm_setup,
            slurm_additional_parameters, ...

    Raises:
        LensplugError: If submitit is not installed, there is no SLURM, or it refuses the jobs; if jobs keep dying, or
            one ends with an error.
    """
    at_least(1, workers=workers)
    try:
        import submitit
    except ImportError as error:
        raise LensplugError("executor='slurm' needs submitit: pip install 'lensplug[slurm]'.") from error
    if logs is None and "://" in place:
        raise LensplugError(f"{place!r} cannot hold what jobs say: give logs= a folder that all machines see.")
    folder = Path(logs).expanduser().absolute() if logs is not None else Path(place) / "logs"
    asked = {"slurm_partition": slurm_partition, "mem_gb": mem_gb, **parameters}
    limits = {f"{cluster}_max_num_timeout": REQUEUED} if cluster != "debug" else {}
    try:
        executor = submitit.AutoExecutor(folder / "%j", cluster=cluster, **limits)
        executor.update_parameters(
            name=f"study-{Path(place).name}"[:60],
            timeout_min=timeout_min,
            gpus_per_node=gpus_per_node,
            **{name: value for name, value in asked.items() if value is not None},
        )
    except (RuntimeError, ValueError, TypeError, NameError, OSError) as error:
        raise LensplugError(f"submitit refuses: {error}") from error

    def start(count: int) -> list[_Job]:
        try:
            with executor.batch():
                jobs = [executor.submit(WorkOnStudy(place, dict(settings))) for _ in range(count)]
        except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError, OSError) as error:
            raise LensplugError(f"SLURM refuses the jobs: {error}") from error
        return [_Job(job, folder) for job in jobs]

    supervise(start, max(1, min(workers, progress.chunks - progress.look())), progress, POLL_S)


@dataclass(frozen=True)
class WorkOnStudy:
    """What a job does."""

    place: str
    settings: Mapping[str, Any]

    def __call__(self) -> str | None:
        """Measure every chunk that is not done and that nobody is at; what is wrong, where something is."""
        from lensplug.study.study import Study

        os.environ[WORKER] = "1"
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # submitit would ignore it
        try:
            Study(self.place).run(**self.settings)
        except LensplugError as error:
            return str(error)
        return None

    def checkpoint(self) -> Any:
        """What the job does when it is queued again, after its time limit or a preemption."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _Job:
    """A job at work, or in the queue."""

    def __init__(self, job: Any, folder: Path) -> None:
        self._job, self._folder = job, folder

    def ended(self) -> str | None:
        """How it ended; None while it works or waits.

        Raises:
            LensplugError: If it ended with an error of lensplug's.
        """
        from submitit.core.utils import FailedJobError, UncompletedJobError

        if not self._job.done():
            return None
        try:
            said = self._job.result()
        except (FailedJobError, UncompletedJobError) as error:
            return f"as job {self._job.job_id}, see {str(self._folder)!r}, with these words: {str(error)[-500:]}"
        if said:
            raise LensplugError(said)
        return ""

    def ask_to_end(self) -> None:
        """Cancel it, unless it has ended."""
        if not self._job.done():
            self._job.cancel(check=False)

    def end(self, longest_s: float) -> None:
        """Wait for its end; what was cancelled ends by itself."""
        until = time.monotonic() + longest_s
        while not self._job.done() and time.monotonic() < until:
            time.sleep(0.1)
