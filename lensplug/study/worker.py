"""One process at work on a pass: it takes chunks, measures their examples, writes their files.

A batch that fails is taken apart: where it does not fit into memory it is halved, down to single examples; otherwise
its examples are tried one by one, those that fail become rows with an error, and the others run together once more, so
that their numbers are those of a batch without them. An example that fails never ends a study.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from lensplug.analysis.saved_fields import to_bytes
from lensplug.errors import LensplugError, NotEnoughMemoryError
from lensplug.study.batches import run_batch
from lensplug.study.chunk_files import METADATA, SUFFIX, WHOLE, Failure, Outcome, parse, table
from lensplug.study.claims import SUSPECT, Claims
from lensplug.study.example_tables import chunk_names, parquet
from lensplug.study.media import MEDIA, opened
from lensplug.study.passes import Pass
from lensplug.study.storage import Storage

KILLED = "KilledItsProcess"
MEMORY = (torch.OutOfMemoryError, MemoryError, NotEnoughMemoryError)
BROKEN_DEVICE = ("CUDA error", "device-side assert", "HIP error")
"""After these nothing on the device works: the process ends, and another goes on."""
stopping = threading.Event()
"""Set when this process is to end its work: workers give their chunk back after the batch that they are at."""


class _Given(Exception):  # noqa: N818  # no error: the chunk is not measured here, and nothing is written
    """A chunk is left to another process, which has taken it over, or to whoever comes."""


@dataclass
class Worker:
    """What a process needs to work on a pass."""

    lens: Any
    storage: Storage
    running: Pass
    examples: pd.DataFrame
    """All examples of the study."""
    batch: int
    finished: Callable[[], object] = lambda: None
    """Called after each chunk."""
    claims: Claims = field(init=False)

    def __post_init__(self) -> None:
        self.claims = Claims(self.storage, self.running.key)

    def work(self) -> bool:
        """Measure every chunk that is not done and that no other process is at; whether any was left to others.

        Raises:
            LensplugError: If every example of the first chunk fails in one way, or the weights are others than before.
        """
        by_chunk = dict(tuple(self.examples.groupby(chunk_names(self.examples), sort=True)))
        self._refuse_other_weights()
        left = False
        try:
            for chunk, rows in by_chunk.items():
                if self._is_done(str(chunk)):
                    continue
                if stopping.is_set() or not self.claims.taken(str(chunk)):
                    left = True
                    continue
                try:
                    if not self._is_done(str(chunk)):  # by who had the claim until now
                        self._measure(str(chunk), rows)
                except _Given:
                    left = True
                self.claims.released(str(chunk))
                self.finished()
        finally:
            self.claims.released_all()
        return left

    def again(self, ids: Sequence[str], attempts: dict[str, int], file: str) -> None:
        """Try some examples of a chunk again, into a file."""
        rows = self.examples[self.examples.id.isin(ids)]
        if not self.claims.taken(file):
            return
        try:
            if not self._is_done(file):  # by who had the claim until now
                with self.claims.renewed(file):
                    outcome = self._outcome(file, rows, set())
                self._write(file, rows, outcome, attempts)
        except _Given:
            pass
        finally:
            self.claims.released_all()

    def _measure(self, chunk: str, rows: pd.DataFrame) -> None:
        with self.claims.renewed(chunk):
            deaths, set_aside = self.claims.deaths(chunk)
            suspects = {one for one, count in deaths.items() if count >= SUSPECT}
            outcome = self._outcome(chunk, rows[~rows.id.isin(set_aside)], suspects)
            if not self.claims.holds(chunk):
                raise _Given
            for one in set_aside:
                outcome.failures[one] = Failure(KILLED, f"its process died {deaths[one]} times while it ran")
        self._refuse_hopeless(rows, outcome)
        self._write(chunk, rows, outcome, {one: 1 + count for one, count in deaths.items()})
        self.claims.forget_deaths(chunk)

    def _outcome(self, chunk: str, rows: pd.DataFrame, suspects: set[str]) -> Outcome:
        outcome = Outcome()
        for batch in self._batches(rows, suspects):
            if stopping.is_set() or not self.claims.running(chunk, batch.id.tolist()):
                raise _Given
            start = time.perf_counter()
            self._run(batch, outcome)
            seconds = (time.perf_counter() - start) / len(batch)
            outcome.seconds.update(dict.fromkeys(batch.id, seconds))
        return outcome

    def _batches(self, rows: pd.DataFrame, suspects: set[str]) -> list[pd.DataFrame]:
        """The batches of a chunk; the examples of one that was running in two deaths, one by one."""
        batches = []
        for start in range(0, len(rows), self.batch):
            batch = rows.iloc[start : start + self.batch]
            single = bool(set(batch.id) & suspects)
            batches += [batch.iloc[i : i + 1] for i in range(len(batch))] if single else [batch]
        return batches

    def _run(self, batch: pd.DataFrame, outcome: Outcome) -> None:
        """Measure a batch, or as much of it as can be."""
        media = []
        for row in batch.to_dict("records"):
            try:
                media.append(self._media(row))
            except LensplugError as error:
                outcome.failures[row["id"]] = _failure(error)
        if len(media) < len(batch):
            batch = batch[~batch.id.isin(outcome.failures)]
        if len(batch):
            self._run_loaded(batch, media, outcome)

    def _run_loaded(self, batch: pd.DataFrame, media: list[Any], outcome: Outcome) -> None:
        try:
            results = run_batch(self.lens, self.running.measurements, batch, media)
        except MEMORY as error:
            if len(batch) == 1:
                outcome.failures[batch.id.iloc[0]] = _failure(error)
                return
            _give_back_memory()
            half = len(batch) // 2
            self._run_loaded(batch.iloc[:half], media[:half], outcome)
            self._run_loaded(batch.iloc[half:], media[half:], outcome)
        except Exception as error:
            if any(text in str(error) for text in BROKEN_DEVICE):
                raise
            if len(batch) == 1:
                outcome.failures[batch.id.iloc[0]] = _failure(error)
            else:
                self._run_apart(batch, media, outcome)
        else:
            outcome.results.append((batch.id.tolist(), results))

    def _run_apart(self, batch: pd.DataFrame, media: list[Any], outcome: Outcome) -> None:
        """Each example of a batch that failed by itself; then those that can be run, together."""
        alone = Outcome()
        for index in range(len(batch)):
            self._run_loaded(batch.iloc[index : index + 1], media[index : index + 1], alone)
        outcome.failures |= alone.failures
        good = [one not in alone.failures for one in batch.id]
        if not alone.failures or sum(good) < 2:
            outcome.results += alone.results
            return
        together = Outcome()
        self._run_loaded(batch[good], [one for one, is_good in zip(media, good, strict=True) if is_good], together)
        outcome.results += alone.results if together.failures else together.results

    def _media(self, row: dict[str, Any]) -> dict[str, list[bytes]]:
        hashes = iter(row["sha256"])
        return {kind: [opened(self.storage, name, next(hashes)) for name in row[kind]] for kind in MEDIA}

    def _write(self, chunk: str, rows: pd.DataFrame, outcome: Outcome, attempts: dict[str, int]) -> None:
        """The results that are no rows first, then the file that makes the chunk done."""
        for measurement in self.running.measurements:
            parts = [results[measurement.name] for _, results in outcome.results]
            if not measurement.way.rows and parts:
                whole = measurement.kind.combine(parts) if len(parts) > 1 else parts[0]
                self.storage.write(f"{self.running.folder}/{chunk}.{measurement.name}{WHOLE}", to_bytes(whole))
        written = table(rows.id.tolist(), outcome, self.running.measurements, attempts, socket.gethostname())
        self.storage.write(f"{self.running.folder}/{chunk}{SUFFIX}", parquet(written))

    def _is_done(self, chunk: str) -> bool:
        return self.storage.exists(f"{self.running.folder}/{chunk}{SUFFIX}")

    def _refuse_hopeless(self, rows: pd.DataFrame, outcome: Outcome) -> None:
        """End a study whose first chunk fails altogether, and not for lack of memory: an option or a folder is wrong.

        Raises:
            LensplugError: Then.
        """
        failed = list(outcome.failures.values())
        memory = {kind.__name__ for kind in MEMORY}
        if len(rows) < 2 or len(failed) < len(rows) or any(one.type in {*memory, KILLED} for one in failed):
            return
        if not self.running.done(self.storage):
            raise LensplugError(
                f"every one of the first {len(rows)} examples failed, the first with: {failed[0].message} Nothing was"
                " written; mend what is wrong and run the study again; study.forget(name) takes a"
                " measurement back."
            )

    def _refuse_other_weights(self) -> None:
        """Refuse to go on with other weights than those of the chunks that are done.

        Raises:
            LensplugError: Then.
        """
        from lensplug.provenance.fingerprint import fingerprint

        for chunk in sorted(self.running.done(self.storage)):
            name = f"{self.running.folder}/{chunk}{SUFFIX}"
            rows = parse(self.storage.read(name), name, ["id"])
            headers = json.loads(rows.schema.metadata[METADATA])["headers"].values()
            before = {header["shared"]["provenance"]["fields"]["weights"] for header in headers}
            if before:
                if before != {fingerprint(self.lens.model)}:
                    raise LensplugError(
                        f"the weights are others than those of the {len(self.running.done(self.storage))} chunks that"
                        " are done (their fingerprints differ): load the checkpoint that this study began with."
                    )
                return


def _failure(error: BaseException) -> Failure:
    """What is written of an example: the measurement that raised, where it was one, and what it said."""
    message, measuring = str(error) or type(error).__name__, getattr(error, "measuring", None)
    return Failure(type(error).__name__, message if measuring is None else f"{measuring}: {message}")


def _give_back_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
