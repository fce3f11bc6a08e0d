"""A study on a Ray cluster: one actor for each worker, with GPUs of its own.

    study.run(executor="ray", address="ray://head:10001", workers=16)

Ray places the workers and starts them again; what is done is in the study's folder. Nothing is shipped: lensplug and
the model must be installed on every machine, and the folder be visible to all under the same path (or be an address
such as "s3://bucket/study").
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from lensplug.errors import LensplugError, LensplugWarning
from lensplug.study.progress import Progress
from lensplug.study.supervision import supervise
from lensplug.study.worker import stopping
from lensplug.validation.arguments import at_least, checked

POLL_S = 0.5
CONNECT_S = 10.0
"""How long a machine may take to answer at all."""


@checked
def run(
    place: str,
    settings: Mapping[str, Any],
    progress: Progress,
    /,
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    cpus_per_worker: float = 1.0,
    max_restarts: int = 3,
) -> None:
    """Work on a study with actors, until every chunk is done.

    Args:
        place: The study's folder.
        settings: Options of `study.run` for each worker.
        progress: To be looked at.
        address: Of the cluster: "auto", "ray://head:10001". By default what this process is connected to, else
            $RAY_ADDRESS, else this machine alone, for as long as the run takes.
        workers: How many; by default as many as there is room for now, and on CPUs one for each machine.
        gpus_per_worker: 1 where the cluster has GPUs, else 0; a fraction shares one.
        cpus_per_worker: CPU cores of each.
        max_restarts: How often Ray itself starts a worker again. Beyond that it is replaced as long as chunks are
            finished in between.

    Raises:
        LensplugError: If Ray is not installed, cannot be reached, or has no room for a worker; if workers keep dying,
            or one ends with an error.
    """
    if workers is not None:
        at_least(1, workers=workers)
    try:
        import ray
    except ImportError as error:
        raise LensplugError("executor='ray' needs Ray: pip install 'lensplug[ray]'.") from error
    with _connected(ray, address) as is_alone:
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpus_per_worker is None:
            gpus_per_worker = 1.0 if any(each.get("GPU") for each in resources) else 0.0
        room = _room(resources, gpus_per_worker, cpus_per_worker)
        if not room:
            _say_that_there_is_no_room(resources, gpus_per_worker, cpus_per_worker, is_alone)
        count = max(1, min(workers or room, progress.chunks - progress.look()))
        actor = ray.remote(StudyActor).options(
            num_gpus=gpus_per_worker,
            num_cpus=cpus_per_worker,
            max_restarts=max_restarts,
            max_concurrency=3,  # it can be asked to stop while it works
            scheduling_strategy="SPREAD",
        )
        supervise(lambda number: [_Actor(ray, actor, place, settings) for _ in range(number)], count, progress, POLL_S)


class StudyActor:
    """What runs in an actor."""

    def placed(self) -> None:
        """Nothing: that it returns shows that there was room for the actor."""

    def work(self, place: str, settings: Mapping[str, Any]) -> None:
        """Measure every chunk that is not done and that nobody is at."""
        from lensplug.study.local import WORKER
        from lensplug.study.study import Study

        os.environ[WORKER] = "1"
        Study(place).run(**settings)

    def stop(self) -> None:
        """Let `work` end after the batch that it is at, and give its chunk back."""
        stopping.set()


class _Actor:
    """An actor at work."""

    def __init__(self, ray: Any, actor: Any, place: str, settings: Mapping[str, Any]) -> None:
        self._ray, self._actor = ray, actor.remote()
        self._placed = self._actor.placed.remote()
        work = self._actor.work.options(max_task_retries=-1)  # it goes on in an actor that was started again
        self._work = work.remote(place, dict(settings))

    def ended(self) -> str | None:
        """How it ended; None while it works or waits for a place.

        Raises:
            LensplugError: If it ended with an error of lensplug's, or lensplug is not installed there.
        """
        if not self._ray.wait([self._work], timeout=0)[0]:
            return None
        try:
            self._ray.get(self._work)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, LensplugError):
                raise LensplugError(str(cause)) from None
            if "No module named 'lensplug" in str(error):
                raise LensplugError(
                    "a machine of the cluster has no lensplug: install the same version on all of them, or give Ray a"
                    " runtime_env that does (ray.init(address=..., runtime_env={'pip': ['lensplug']}) before the run)."
                ) from error
            return f"in an actor of Ray's, with these words: {str(cause or error).strip()[-500:]}"
        return ""

    def ask_to_end(self) -> None:
        """Ask it to end."""
        with suppress(self._ray.exceptions.RayError):
            self._actor.stop.remote()

    def end(self, longest_s: float) -> None:
        """Wait for its end, unless it has no place yet, and end it."""
        if longest_s and self._ray.wait([self._placed], timeout=0)[0]:
            self._ray.wait([self._work], timeout=longest_s)
        self._ray.kill(self._actor, no_restart=True)


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[bool]:
    """Connect to a cluster for as long as the block runs, unless this process is; whether it is this machine alone.

    Raises:
        LensplugError: If there is no such cluster, or this process is connected and another is asked for.
    """
    if ray.is_initialized():
        if address not in (None, "auto"):
            raise LensplugError(f"Ray is connected already: leave address={address!r} out, or ray.shutdown() first.")
        yield False
        return
    chosen = address or os.environ.get("RAY_ADDRESS") or "local"
    alone = {"include_dashboard": False} if chosen == "local" else {}
    if alone:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that only this run needs reports to nobody
    _refuse_unreachable(chosen)
    try:
        try:
            ray.init(address=chosen, log_to_driver=False, logging_level="warning", **alone)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError, ImportError) as error:
            raise LensplugError(f"Ray cannot be reached at {chosen!r}: {error}") from error
        yield chosen == "local"
    finally:
        ray.shutdown()


def _refuse_unreachable(address: str) -> None:
    """Refuse a machine and port at which nobody listens: Ray itself tries for many minutes.

    Raises:
        LensplugError: If it is one.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except OSError as error:
            raise LensplugError(f"Ray cannot be reached at {address!r}: {error.strerror or error}.") from error


def _room(resources: list[Mapping[str, float]], gpus: float, cpus: float) -> int:
    """How many workers the machines have room for; without GPUs one each."""
    fitting = [each for each in resources if each.get("GPU", 0) >= gpus and each.get("CPU", 0) >= cpus]
    return sum(int(each["GPU"] // gpus) for each in fitting) if gpus else len(fitting)


def _say_that_there_is_no_room(resources: list[Mapping[str, float]], gpus: float, cpus: float, is_alone: bool) -> None:
    """Warn; or refuse where no machine can come.

    Raises:
        LensplugError: On this machine alone.
    """
    largest = {kind: max((each.get(kind, 0) for each in resources), default=0) for kind in ("GPU", "CPU")}
    said = (
        f"no machine of the cluster has the {gpus:g} GPUs and {cpus:g} CPU cores of a worker (gpus_per_worker=,"
        f" cpus_per_worker=); the most are {largest['GPU']:g} and {largest['CPU']:g}"
    )
    if is_alone:
        raise LensplugError(f"{said}.")
    warnings.warn(f"{said}: the run waits until such a machine comes.", LensplugWarning, stacklevel=3)
