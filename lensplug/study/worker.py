"""One process at work on a pass: it takes chunks, measures their examples, writes their files.

A batch that fails is taken apart: where it does not fit into memory it is halved, down to single examples. Otherwise
the measurement that raised is taken alone, so that the others are measured as if it had not been asked for; its
examples are tried one by one, those that fail become rows with an error, and the others run together once more, so that
their numbers are those of a batch without them. An example that fails never ends a study.
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
from lensplug.study.chunk_files import METADATA, RETRY, SUFFIX, WHOLE, Failure, Outcome, parse, table
from lensplug.study.claims import SUSPECT, Claims
from lensplug.study.example_tables import chunk_names, parquet
from lensplug.study.measurements import Measurement
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
        """Measure what some examples of a chunk lack, into a file."""
        rows = self.examples[self.examples.id.isin(ids)]
        if not self.claims.taken(file):
            return
        try:
            if not self._is_done(file):  # by who had the claim until now
                lacking = self.running.lacking(self.storage, file.partition(RETRY)[0])
                outcome = Outcome()
                with self.claims.renewed(file):
                    for names in dict.fromkeys(lacking[one] for one in rows.id):
                        alike = rows[[lacking[one] == names for one in rows.id]]
                        measurements = [one for one in self.running.measurements if one.name in names]
                        outcome.merge(self._outcome(file, alike, set(), measurements))
                self._write(file, rows, outcome, attempts)
        except _Given:
            pass
        finally:
            self.claims.released_all()

    def _measure(self, chunk: str, rows: pd.DataFrame) -> None:
        every = self.running.measurements
        with self.claims.renewed(chunk):
            deaths, set_aside = self.claims.deaths(chunk)
            suspects = {one for one, count in deaths.items() if count >= SUSPECT}
            outcome = self._outcome(chunk, rows[~rows.id.isin(set_aside)], suspects, every)
            if not self.claims.holds(chunk):
                raise _Given
            for one in set_aside:
                outcome.failed(one, every, Failure(KILLED, f"its process died {deaths[one]} times while it ran"))
        self._refuse_hopeless(rows, outcome)
        self._write(chunk, rows, outcome, {one: 1 + count for one, count in deaths.items()})
        self.claims.forget_deaths(chunk)

    def _outcome(
        self, chunk: str, rows: pd.DataFrame, suspects: set[str], measurements: Sequence[Measurement]
    ) -> Outcome:
        outcome = Outcome()
        for batch in self._batches(rows, suspects):
            if stopping.is_set() or not self.claims.running(chunk, batch.id.tolist()):
                raise _Given
            start = time.perf_counter()
            self._run(batch, measurements, outcome)
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

    def _run(self, batch: pd.DataFrame, measurements: Sequence[Measurement], outcome: Outcome) -> None:
        """Measure a batch, or as much of it as can be."""
        media = []
        for row in batch.to_dict("records"):
            try:
                media.append(self._media(row))
            except LensplugError as error:
                outcome.failed(row["id"], measurements, _failure(error))
        if len(media) < len(batch):
            batch = batch[~batch.id.isin(outcome.failures)]
        if len(batch):
            self._run_loaded(batch, media, measurements, outcome)

    def _run_loaded(
        self, batch: pd.DataFrame, media: list[Any], measurements: Sequence[Measurement], outcome: Outcome
    ) -> None:
        try:
            results = run_batch(self.lens, measurements, batch, media)
        except Exception as raised:
            if not isinstance(raised, MEMORY) and any(text in str(raised) for text in BROKEN_DEVICE):
                raise
            error = raised.with_traceback(None)  # whose frames hold what the run had in memory
        else:
            outcome.results.append((batch.id.tolist(), results))
            return
        names = getattr(error, "measuring", ())
        parts = [[one for one in measurements if (one.name in names) == named] for named in (False, True)]
        if isinstance(error, MEMORY) and len(batch) > 1:
            _give_back_memory()
            half = len(batch) // 2
            self._run_loaded(batch.iloc[:half], media[:half], measurements, outcome)
            self._run_loaded(batch.iloc[half:], media[half:], measurements, outcome)
        elif all(parts):
            for part in parts:
                self._run_loaded(batch, media, part, outcome)
        elif len(batch) > 1:
            self._run_apart(batch, media, measurements, outcome)
        elif len(measurements) > 1:  # what they share raised: one of them may ask too much of it
            for one in measurements:
                self._run_loaded(batch, media, [one], outcome)
        else:
            outcome.failed(batch.id.iloc[0], measurements, _failure(error))

    def _run_apart(
        self, batch: pd.DataFrame, media: list[Any], measurements: Sequence[Measurement], outcome: Outcome
    ) -> None:
        """Each example of a batch that failed by itself; then those that can be run, together."""
        alone = Outcome()
        for index in range(len(batch)):
            self._run_loaded(batch.iloc[index : index + 1], media[index : index + 1], measurements, alone)
        outcome.merge(Outcome(failures=alone.failures))
        good_of = {
            one.name: tuple(one.name not in alone.failures.get(each, ()) for each in batch.id) for one in measurements
        }
        for good in dict.fromkeys(good_of.values()):
            alike = [one for one in measurements if good_of[one.name] == good]
            together = Outcome()
            if not all(good) and sum(good) > 1:
                some = [one for one, is_good in zip(media, good, strict=True) if is_good]
                self._run_loaded(batch[list(good)], some, alike, together)
            if together.failures or not together.results:
                names = {one.name for one in alike}
                together.results = [
                    (ids, {name: result for name, result in results.items() if name in names})
                    for ids, results in alone.results
                ]
            outcome.results += together.results

    def _media(self, row: dict[str, Any]) -> dict[str, list[bytes]]:
        hashes = iter(row["sha256"])
        return {kind: [opened(self.storage, name, next(hashes)) for name in row[kind]] for kind in MEDIA}

    def _write(self, chunk: str, rows: pd.DataFrame, outcome: Outcome, attempts: dict[str, int]) -> None:
        """The results that are no rows first, then the file that makes the chunk done."""
        for measurement in self.running.measurements:
            parts = [result for _, result in outcome.with_results(measurement)]
            if not measurement.way.rows and parts:
                whole = measurement.kind.combine(parts) if len(parts) > 1 else parts[0]
                self.storage.write(f"{self.running.folder}/{chunk}.{measurement.name}{WHOLE}", to_bytes(whole))
        written = table(rows.id.tolist(), outcome, self.running.measurements, attempts, socket.gethostname())
        self.storage.write(f"{self.running.folder}/{chunk}{SUFFIX}", parquet(written))

    def _is_done(self, chunk: str) -> bool:
        return self.storage.exists(f"{self.running.folder}/{chunk}{SUFFIX}")

    def _refuse_hopeless(self, rows: pd.DataFrame, outcome: Outcome) -> None:
        """End a study of whose first chunk a measurement fails altogether, and not for lack of memory.

        An option or a folder is wrong.

        Raises:
            LensplugError: Then.
        """
        if len(rows) < 2 or self.running.done(self.storage):
            return
        memory = {kind.__name__ for kind in MEMORY}
        for measurement in self.running.measurements:
            of_examples = [outcome.failures.get(one, {}) for one in rows.id]
            failed = [each[measurement.name] for each in of_examples if measurement.name in each]
            if len(failed) < len(rows) or any(one.type in {*memory, KILLED} for one in failed):
                continue
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
    return Failure(type(error).__name__, message if measuring is None else f"{', '.join(measuring)}: {message}")


def _give_back_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
