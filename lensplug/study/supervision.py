"""Workers that are started, and started again where they die, until every chunk is done.

What a worker is (a process, an actor of Ray's, a job of SLURM's) is the executor's matter. Which chunk is whose and
what is done is in the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, runtime_checkable

from lensplug.errors import LensplugError

DEATHS_IN_A_ROW = 5
"""Workers that died in one place without a chunk finished meanwhile, by anybody: then it is not the examples."""
END_S, DONE_S = 20.0, 5.0
"""How long workers that were asked to end may take: they give back their chunks; and when nothing is left to do."""
POLL_S = 0.2


@runtime_checkable
class Worker(Protocol):
    """A process somewhere that works on a study."""

    def ended(self) -> str | None:
        """None while it runs or waits for a place, "" when it has finished, and how it died otherwise.

        Raises:
            LensplugError: If it ended with an error that the next would meet too.
        """

    def ask_to_end(self) -> None:
        """Ask it to end, unless it has."""

    def end(self, longest_s: float) -> None:
        """Wait for its end, for so long at most, and then end it."""


@runtime_checkable
class Chunks(Protocol):
    """What is to be done, and how far it is: `lensplug.study.progress.Progress`."""

    @property
    def chunks(self) -> int:
        """How many there are."""

    def look(self) -> int:
        """How many are done."""

    def is_work_left(self) -> bool:
        """Whether there is one that is not done, and that no living process has."""


def supervise(start: Callable[[int], Sequence[Worker]], count: int, progress: Chunks, poll_s: float = POLL_S) -> None:
    """Keep workers at work until every chunk is done.

    One that dies is replaced; when all have finished and a chunk is left that no living process has, because its
    process died after they had looked, they are started again.

    Args:
        start: Starts so many.
        count: How many there are to be.
        progress: To be looked at.
        poll_s: How often, in seconds.

    Raises:
        LensplugError: If workers keep dying, or one ends with an error.
    """
    workers: dict[int, Worker] = {}
    deaths, done = [0] * count, progress.look()
    try:
        while done < progress.chunks:
            missing = [index for index in range(count) if index not in workers]
            if missing and (len(missing) < count or progress.is_work_left()):
                workers.update(zip(missing, start(len(missing)), strict=True))
            time.sleep(poll_s)
            ended = {index: how for index, worker in workers.items() if (how := worker.ended()) is not None}
            now = progress.look()
            deaths, done = ([0] * count if now > done else deaths), now
            for index, how in ended.items():
                if how:
                    deaths[index] += 1
                    _refuse_to_go_on(deaths, index, how)
                    workers.pop(index).end(0.0)
            if workers and all(ended.get(index) == "" for index in range(count)):
                _end(workers.values(), DONE_S)
                workers = {}
    finally:
        _end(workers.values(), END_S if done < progress.chunks else DONE_S)


def _refuse_to_go_on(deaths: Sequence[int], index: int, how: str) -> None:
    if deaths[index] >= DEATHS_IN_A_ROW:
        raise LensplugError(
            f"{sum(deaths)} processes of this study died, and no chunk was finished in between; the last {how}"
        )


def _end(workers: Collection[Worker], longest_s: float) -> None:
    """End them, first all of them with a request."""
    try:
        for worker in workers:
            worker.ask_to_end()
        until = time.monotonic() + longest_s
        for worker in workers:
            worker.end(max(0.0, until - time.monotonic()))
    except BaseException:  # a second Ctrl-C
        for worker in workers:
            worker.end(0.0)
        raise
