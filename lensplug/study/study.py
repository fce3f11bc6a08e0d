"""A study: one model, many examples, some measurements, in a folder that outlives the process.

    study = lensplug.Study("flowers-color", model="llava-hf/llava-onevision-qwen2-0.5b-ov-hf", dtype="bfloat16")
    study.add_folder("flowers/", prompt="What is the color? Answer single word.", group="species")
    study.measure(analysis.head_specialization, query=-1)
    study.measure(analysis.logit_lens, positions=-1)
    study.run(batch=8)                                    # goes on where it stopped
    heads = study.result(analysis.head_specialization)

What is on disk:

    study.json                      the model and how it is loaded: written once
    examples/*.parquet              prompts, media with their SHA-256, targets, groups, your columns
    measurements/*.json             what is to be measured
    results/<pass>/pass.json        measurements that share runs of the model, and the versions they were begun with
    results/<pass>/<chunk>.parquet  a row for each example: numbers, or errors
    media/                          what was in memory
    claims/, logs/                  who is at work, what jobs said: may be deleted

Every file appears whole or not at all, and none is ever changed: a process may be killed at any moment.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lensplug.errors import LensplugError, LensplugWarning
from lensplug.interventions.edit import Edit
from lensplug.study import example_tables, executors, new_examples, passes
from lensplug.study.chunk_files import OF_FAILURES, SUFFIX, failures, parse
from lensplug.study.claims import Claims
from lensplug.study.example_tables import chunk_names, user_columns
from lensplug.study.identity import Identity, identity_of, read_identity, refuse_other, write_identity
from lensplug.study.load import function_of, load_lens, refuse_other_lens
from lensplug.study.local import WORKER, checks_results, devices_of
from lensplug.study.measurements import measurement_of
from lensplug.study.media import SUFFIXES
from lensplug.study.new_examples import NewExample
from lensplug.study.progress import Progress
from lensplug.study.results import StudyResult
from lensplug.study.storage import Storage, storage_at
from lensplug.study.supervision import POLL_S
from lensplug.study.ways import OfColumn
from lensplug.study.worker import Worker, stopping
from lensplug.validation.arguments import at_least, checked

Executor = Literal["local", "ray", "slurm"]
CHUNK = 64
"""Examples in a file of results, unless a study says otherwise: what is lost when a process is killed."""


class Study:
    """Measurements of one model on many examples, kept in a folder."""

    @checked
    def __init__(
        self, folder: str | Path, *, model: str | Path | None = None, chunk: int | None = None, **load: Any
    ) -> None:
        """Open a study, or begin one.

        Args:
            folder: Its folder, or an address that pyarrow opens ("s3://bucket/flowers").
            model: What it is a study of; may be left out when it is opened again. A model of the hub, a folder, or a
                function that returns a lens ("my_models:load_mine", "lensplug.tiny:llava_onevision").
            chunk: How many examples a file of results holds, 64 by default.
            **load: Options of `lensplug.load` (dtype, engine, process_weights, revision), or of the function. The
                device is an option of `run`.

        Raises:
            LensplugError: If the folder holds a study of something else (what differs is named) or no study, or the
                model is not found.
        """
        self.storage: Storage = storage_at(folder)
        existing = read_identity(self.storage)
        if model is None:
            if existing is None:
                raise LensplugError(f"there is no study in {str(folder)!r} yet: begin one with model=...")
            if load or chunk is not None:
                raise LensplugError(
                    "options of a study are given with model=..., and compared with what it was begun with."
                )
            self.identity: Identity = existing
            return
        if "device" in load:
            raise LensplugError("the device is no part of a study: study.run(devices=...).")
        size = chunk if chunk is not None else CHUNK if existing is None else existing.chunk
        at_least(1, chunk=size)
        asked = identity_of(model, load, size)
        if existing is not None:
            refuse_other(self.storage, existing, asked)
        if existing is None and asked.checkpoint["kind"] == "function":
            function_of(asked.model)  # a study that could never run is not begun
        self.identity = existing or write_identity(self.storage, asked)

    def __repr__(self) -> str:
        """What it is of, and how far it is."""
        return f"Study({self.storage.place!r}: {self.identity.name}, {len(self.examples)} examples)"

    @property
    def examples(self) -> pd.DataFrame:
        """All examples: id, prompt, media, target, and your columns."""
        return example_tables.read(self.storage)

    @checked
    def add_folder(self, folder: str | Path, *, prompt: str | Sequence[str], group: str = "group") -> int:
        """Add every image, video and sound of a folder, with one or several prompts each.

        Args:
            folder: Its subfolders are groups; where it has none, its own name is the only group.
            prompt: What is asked about each.
            group: What the column with the names of the groups is called.

        Returns:
            How many examples are new; what was added before is not added again.

        Raises:
            LensplugError: If there is no such folder, or nothing in it.
        """
        return self._add(new_examples.from_folder(folder, prompt, group, SUFFIXES))

    @checked
    def add(self, examples: Any, *, prompt: str | None = None, **columns: Any) -> int:
        """Add examples from a manifest, a data set, or as analyses take them.

        Args:
            examples: A CSV, JSONL or Parquet file, a DataFrame, or a `datasets.Dataset`, with the columns `prompt`,
                `image`, `video` or `audio` (a path, several, or what is in memory; relative paths are relative to the
                file), `target`, `key`, and any others, which may be groups; or a list of `analysis.Example`.
            prompt: The prompt of all, where there is no such column.
            **columns: Of a list of `analysis.Example`, further columns, one entry for each.

        Returns:
            How many examples are new.

        Raises:
            LensplugError: If there is no prompt, a file cannot be read, two examples are the same (give them a key), or
                one is there with another target.
        """
        from lensplug.study.manifests import read_manifest

        tables, folder = read_manifest(examples)
        if tables is not None:
            if columns:
                raise LensplugError("further columns are columns of the table itself.")
            return self._add(new_examples.from_tables(tables, folder, prompt))
        return self._add(new_examples.from_examples(examples, columns))

    def _add(self, new: Iterable[NewExample]) -> int:
        return example_tables.add(self.storage, new, self.identity.chunk)

    @checked
    def column(self, name: str) -> OfColumn:
        """A column of the examples as an option: each example's own value.

            study.measure(analysis.neuron_activity, domain=study.column("species"))

        Raises:
            LensplugError: If there is no such column.
        """
        self._refuse_other_columns([name])
        return OfColumn(name)

    @checked
    def measure(
        self,
        function: Callable[..., Any] | str,
        *,
        name: str | None = None,
        interventions: Sequence[Edit] = (),
        **options: Any,
    ) -> None:
        """Ask for an analysis of every example; `run` does it. Again changes nothing.

        Args:
            function: `analysis.head_specialization`, `logit_lens`, `direct_attribution`, `neuron_activity`,
                `modality_ablation`, `grounding`, `neuron_ablation`, `deletion_curve` (with `relevance`, a map by name),
                `information_flow`, `spatial_entropy`, or its name.
            name: What it is called, where one analysis is measured in several ways.
            interventions: Edits under which it is measured (`lensplug.interventions`), in places that every example
                has: `[Knockout(from_="image", to="last", layers=[1])]`. Measured without them under another name,
                both are there to be compared.
            **options: Its options: numbers, texts, lists of them, or `study.column(...)`.

        Raises:
            LensplugError: If a study does not measure it, or an option is unknown.
        """
        passes.declare(self.storage, measurement_of(function, name, options, interventions))

    @checked
    def forget(self, name: str) -> None:
        """Take a measurement back: what was asked for by mistake, or cannot be run. Results that are there stay.

        Args:
            name: Of the measurement.

        Raises:
            LensplugError: If none has this name.
        """
        passes.forget(self.storage, name)

    @checked
    def run(
        self,
        *,
        devices: str | Sequence[str] | None = None,
        batch: int = 8,
        executor: Executor = "local",
        new_versions: bool = False,
        lens: Any = None,
        model: str | None = None,
        **options: Any,
    ) -> None:
        """Measure what is not measured yet; goes on where it, or any other process, stopped.

        Args:
            devices: "all" GPUs, "cuda:1", or a list; with several, one process for each. One device by default, in this
                process.
            batch: How many prompts run together. What does not fit into memory is halved.
            executor: "local"; "ray" (`pip install 'lensplug[ray]'`) or "slurm" (`'lensplug[slurm]'`) for many machines.
            new_versions: Measure everything again where it was begun with other versions of the packages.
            lens: A lens that is loaded already, of the study's model, for a run in this process.
            model: Where the folder of the model is on this machine, if elsewhere.
            **options: Of the executor: `workers`, and more in `lensplug.study.ray_executor`, `.slurm_executor`.

        Raises:
            LensplugError: If there is nothing to measure, all of the first examples fail, processes keep dying, or a
                pass was begun with other weights or versions. Whatever is done stays done.
        """
        at_least(1, batch=batch)
        self.storage.remove_abandoned()
        for one in passes.passes(self.storage) if checks_results() else ():
            if broken := one.set_broken_aside(self.storage):
                warnings.warn(
                    f"{len(broken)} files of results are broken, {broken[0]!r} and what follows: set aside as"
                    " .broken, their examples are measured again.",
                    LensplugWarning,
                    stacklevel=2,
                )
        table = self.examples
        if table.empty:
            raise LensplugError("the study has no examples yet: study.add_folder(...), study.add(...).")
        counts = chunk_names(table).value_counts().to_dict()
        on, elsewhere = devices_of(devices), executor != "local"
        if not on:
            raise LensplugError("devices is an empty list: give at least one, or leave it out.")
        if lens is not None and (elsewhere or len(on) > 1):
            raise LensplugError("a lens in memory runs in this process only: leave lens=, or what is beside it, out.")
        if options and not elsewhere:
            raise LensplugError(f"run takes no {next(iter(options))!r} with executor='local'.")
        to_run = passes.to_run(self.storage, self.identity, list(counts), new_versions=new_versions)
        if to_run and (elsewhere or len(on) > 1):
            settings = {"batch": batch, "new_versions": new_versions, "model": model}
            for_workers = {name: value for name, value in settings.items() if value}
            with Progress(counts, to_run, self.storage) as progress:
                executors.run(executor, self.storage.address, on, for_workers, progress, options)
            return
        if to_run and lens is not None:
            refuse_other_lens(self.identity, lens)
        for running in to_run:
            with Progress(counts, [running], self.storage, shown=WORKER not in os.environ) as progress:
                while progress.look() < progress.chunks and not stopping.is_set():
                    if progress.is_work_left():
                        lens = lens or load_lens(self.identity, on[0], model)
                        Worker(lens, self.storage, running, table, batch, finished=progress.look).work()
                    elif WORKER in os.environ:
                        break
                    else:  # until chunks of other processes are done, or their processes have died
                        time.sleep(POLL_S)

    def progress(self) -> pd.DataFrame:
        """How far each pass is: its measurements, examples done, failed and in all, and the chunks at work now."""
        counts = chunk_names(self.examples).value_counts()
        rows = []
        for one in passes.passes(self.storage):
            done = [chunk for chunk in one.done(self.storage) if chunk in counts]
            failed = self._failures_of(one)
            at_work = set(Claims(self.storage, one.key).at_work()) - set(done)
            rows.append(
                {
                    "pass": one.key,
                    "measurements": ", ".join(measurement.name for measurement in one.measurements),
                    "done": int(counts[done].sum()) - len(failed),
                    "failed": len(failed),
                    "examples": int(counts.sum()),
                    "chunks_at_work": len(at_work),
                }
            )
        columns = ["pass", "measurements", "done", "failed", "examples", "chunks_at_work"]
        return pd.DataFrame(rows, columns=columns)

    def failures(self) -> pd.DataFrame:
        """The examples that failed, with their errors, prompts and media.

        Where one of several measurements failed, the error begins with its name; the others are among the results.
        """
        parts = [self._failures_of(one).assign(**{"pass": one.key}) for one in passes.passes(self.storage)]
        failed = pd.concat(parts) if parts else pd.DataFrame(columns=["id"])
        return failed.merge(self.examples.drop(columns=["sha256", "size"]), on="id", how="left")

    @checked
    def retry(self, *, batch: int = 8, lens: Any = None, device: str | None = None, model: str | None = None) -> int:
        """Try what failed of examples again, in this process; what is written before stays.

        Args:
            batch: How many run together.
            lens: A lens that is loaded already.
            device: Where to load the model.
            model: Where the folder of the model is on this machine, if elsewhere.

        Returns:
            How many of them work now.
        """
        at_least(1, batch=batch)
        table, mended = self.examples, 0
        for one in passes.passes(self.storage):
            failed = self._failures_of(one)
            if failed.empty:
                continue
            lens = lens or load_lens(self.identity, device, model)
            worker = Worker(lens, self.storage, one, table, batch)
            of_chunk = chunk_names(table).set_axis(table.id)
            for chunk, rows in failed.groupby(failed.id.map(of_chunk)):
                attempts = dict(zip(rows.id, rows.attempts + 1, strict=True))
                worker.again(rows.id.tolist(), attempts, one.next_try(self.storage, str(chunk)))
            mended += len(failed) - len(self._failures_of(one))
        return mended

    @checked
    def result(self, function: Callable[..., Any] | str) -> StudyResult:
        """The results of a measurement, so far.

        Args:
            function: The analysis, or the name that the measurement was given.

        Raises:
            LensplugError: If it is not measured, or there are no results yet.
        """
        name = function if isinstance(function, str) else getattr(function, "__name__", repr(function))
        found, measurement = passes.pass_of(self.storage, name)
        return StudyResult(self.storage, self.examples, found, measurement)

    @checked
    def report(
        self, path: str | Path, *, by: str | None = None, other: Study | None = None, static: bool = False
    ) -> Path:
        """Write one self-contained page: what was asked, done and found so far, with figures and intervals.

        Args:
            path: The page; one that is there is replaced.
            by: The column of the examples whose values are groups; by default the first with two to eight values.
            other: Another study with the same measurements (another checkpoint), to be compared with.
            static: Without scripts, drawn with matplotlib (`pip install 'lensplug[static]'`).

        Returns:
            The path.

        Raises:
            LensplugError: If there are no examples, no such column, nothing to compare, or the page cannot be written.
        """
        # Looked up when it is asked for, so that a study never needs a plotting library.
        write = import_module("lensplug.app.study_report").write_study_report
        written: Path = write(self, path, by=by, other=other, static=static)
        return written

    def _failures_of(self, one: passes.Pass) -> pd.DataFrame:
        """The examples of a pass that lack a measurement after their last try."""
        last: dict[str, Any] = {}
        for chunk in one.chunks(self.storage):
            for file in one.of_chunk(self.storage, chunk):
                name = f"{one.folder}/{file}{SUFFIX}"
                rows = parse(self.storage.read(name), name, OF_FAILURES)
                if file == chunk and not rows["error"].null_count < len(rows):
                    continue
                for identifier in rows["id"].to_pylist() if file != chunk else ():
                    last.pop(identifier, None)
                last |= {row["id"]: row for row in failures(rows).to_dict("records")}
        return pd.DataFrame(list(last.values()), columns=OF_FAILURES)

    def _refuse_other_columns(self, names: Sequence[str]) -> None:
        table = self.examples
        allowed = ["target", "key", "prompt", *user_columns(table)]
        for name in names:
            if name not in allowed:
                raise LensplugError(f"the examples have no column {name!r}: they have {', '.join(allowed)}.")
