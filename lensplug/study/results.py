"""The results of a study: read chunk by chunk, as one result, or as statistics over examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from lensplug.analysis.example_rows import ExampleRows, from_rows
from lensplug.analysis.group_differences import GroupDifferences
from lensplug.analysis.group_means import GroupMeans
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.statistics.corrections import Correction
from lensplug.study.chunk_files import (
    BOOKKEEPING,
    MEASURED,
    SUFFIX,
    WHOLE,
    example_rows,
    has,
    joined,
    parse,
    schema,
    with_it,
)
from lensplug.study.differences import ComparisonOptions, differences, side
from lensplug.study.example_tables import chunk_names, user_columns
from lensplug.study.local_folder import LocalFolder
from lensplug.study.means import IntervalKind, IntervalOptions, means
from lensplug.study.measurements import Measurement
from lensplug.study.passes import Pass
from lensplug.study.storage import Storage
from lensplug.validation.arguments import checked


@dataclass(frozen=True, repr=False)
class StudyResult:
    """One measurement of a study, as far as it is done."""

    storage: Storage
    all_examples: pd.DataFrame
    """Every example of the study."""
    made: Pass
    measurement: Measurement

    @property
    def examples(self) -> pd.DataFrame:
        """The examples that have results, in the order of the results."""
        ids = [
            identifier
            for _, table in self._tables()
            for identifier in with_it(table, self.measurement)["id"].to_pylist()
        ]
        return self.all_examples.set_index("id").loc[ids].reset_index()

    @property
    def result(self) -> Any:  # of the analysis's own class
        """All of it as one result, in memory: what `views` draw, and what has the methods of the analysis.

        Raises:
            LensplugError: If there is no result yet.
        """
        if not self.measurement.way.rows:
            return self._whole()
        parts = [rows for _, rows in self._parts()]
        if not parts:
            raise self._nothing()
        return from_rows(self.measurement.kind, joined(parts, self.measurement.kind))

    @property
    def files(self) -> list[Path]:
        """The files of activations or counts, in the order of `examples`: for `analysis.probe`, or safetensors.

        Raises:
            LensplugError: If the study is not on this machine, or the measurement has a row for each example.
        """
        if self.measurement.way.rows or not isinstance(self.storage, LocalFolder):
            raise LensplugError(
                f"{self.measurement.name!r} has no files of its own here: read .result, .chunks() or .mean()."
            )
        return [self.storage.path / self.made.folder / name for name in self._whole_names()]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example and thing that is measured: id, prompt, target, your columns, labels, numbers.

        Of counts and activations, which are not kept by example, it is the table of `result`.
        """
        if not self.measurement.way.rows:
            return self._whole().to_dataframe()
        tables = []
        for examples, result in self.chunks():
            over = result.over_examples()
            rows = len(next(iter(over.values.values()))[0])
            described = examples[["id", "prompt", "target", *user_columns(examples)]]
            taken = {*over.labels, *over.values, *_about_a_target(over.values)}
            described = described.rename(columns={name: f"{name}_of_example" for name in taken})
            repeated = described.loc[described.index.repeat(rows)].reset_index(drop=True)
            labels = {name: list(entries) * len(examples) for name, entries in over.labels.items()}
            numbers = {name: values.double().flatten().numpy() for name, values in over.values.items()}
            texts = _targets(result, rows)
            tables.append(repeated.assign(**texts, **labels, **numbers))
        if not tables:
            raise self._nothing()
        table = pd.concat(tables, ignore_index=True)
        table = table[table[list(numbers)].notna().any(axis=1)].reset_index(drop=True)
        table.attrs |= {"measurement": self.measurement.name, "analysis": self.measurement.analysis}
        table.attrs |= {"options": dict(self.measurement.options), "interventions": self._edits}
        return table

    def chunks(self) -> Iterator[tuple[pd.DataFrame, Result]]:
        """The results in parts that fit into memory, each with its examples; every label is there in each of them."""
        by_id = self.all_examples.set_index("id")
        for ids, rows in self._parts():
            yield by_id.loc[ids].reset_index(), from_rows(self.measurement.kind, rows, every_label=True)

    @checked
    def mean(
        self,
        by: str | None = None,
        *,
        number: str | None = None,
        over: str | None = None,
        interval: IntervalKind | None = "bootstrap",
        clusters: str | None = None,
        confidence: float = 0.95,
        replicates: int = 2000,
        seed: int = 0,
    ) -> GroupMeans:
        """Means over the examples, in groups, with intervals; read chunk by chunk.

        Args:
            by: A column of the examples: each of its values is a group. All examples are one group by default.
            number: Which number: for heads "mass", "preference", "ratio", ...; the analysis's main one by default.
            over: A label that is averaged out in each example first: with "head", means by layer.
            interval: "bootstrap" over clusters, "normal" (the mean plus or minus so many standard errors), or None.
            clusters: The column of what is drawn together: several questions about one picture are one cluster. By
                default the media of an example.
            confidence: How often such an interval holds the true mean, between 0 and 1.
            replicates: How often the bootstrap draws.
            seed: Of the bootstrap.

        Raises:
            LensplugError: If there is no such column or number, or there are no results yet.
        """
        options = IntervalOptions(interval, clusters, confidence, replicates, seed)
        found = means(self.chunks(), self.measurement.analysis, by, number, options, over)
        if found is None:
            raise self._nothing()
        return found

    @checked
    def difference(
        self,
        a: str,
        b: str,
        *,
        by: str,
        number: str | None = None,
        over: str | None = None,
        pairs: str | None = None,
        clusters: str | None = None,
        correction: Correction = "max_statistic",
        confidence: float = 0.95,
        permutations: int = 10_000,
        seed: int = 0,
    ) -> GroupDifferences:
        """One group less another, in each row, with intervals and corrected p-values; both are held in memory.

        Args:
            a: A group.
            b: The other.
            by: The column of the examples that says the group: "species", "prompt".
            number: Which number; the analysis's main one by default.
            over: A label that is averaged out in each example first: with "head", differences by layer.
            pairs: The column that names pairs. By default examples with the same media are pairs, where both groups
                have some; else the groups are of different examples.
            clusters: The column of what is drawn and shuffled together; by default the media of an example.
            correction: For the number of rows, by name (`lensplug.statistics`).
            confidence: Of intervals, between 0 and 1.
            permutations: How many are tried.
            seed: Of permutations and bootstrap.

        Raises:
            LensplugError: If a group has no results.
        """
        first, second = (side(self.chunks(), group, number, by, over) for group in (a, b))
        options = ComparisonOptions(pairs, clusters, correction, confidence, permutations, seed)
        return differences(first, second, self.measurement.analysis, options)

    @checked
    def compare(
        self,
        other: StudyResult,
        *,
        names: tuple[str, str] = ("this", "other"),
        number: str | None = None,
        over: str | None = None,
        clusters: str | None = None,
        correction: Correction = "max_statistic",
        confidence: float = 0.95,
        permutations: int = 10_000,
        seed: int = 0,
    ) -> GroupDifferences:
        """This study less another (two checkpoints), over the examples that both have; by pairs.

        Args:
            other: The same measurement of the other study.
            names: What the two are called.
            number: This and the rest as for `difference`.
            over: Likewise.
            clusters: Likewise.
            correction: Likewise.
            confidence: Likewise.
            permutations: Likewise.
            seed: Likewise.

        Raises:
            LensplugError: If they are of different analyses or options, or have no example in common.
        """
        mine, others = self.measurement, other.measurement
        if (mine.analysis, mine.changed) != (others.analysis, others.changed):
            raise LensplugError(
                f"{mine.analysis} with {dict(mine.options)} and {others.analysis} with {dict(others.options)} measure"
                " different things: compare results of one measurement."
            )
        chunks = (self.chunks(), other.chunks())
        first, second = (side(each, name, number, None, over) for each, name in zip(chunks, names, strict=True))
        options = ComparisonOptions("id", clusters, correction, confidence, permutations, seed)
        return differences(first, second, mine.analysis, options)

    def __repr__(self) -> str:
        """What was measured of how much."""
        under = f", under {'; '.join(self._edits)}" if self._edits else ""
        counts = f"{len(self.examples)} of {len(self.all_examples)} examples"
        return f"StudyResult({self.measurement.name}: {counts}{under})"

    @property
    def _edits(self) -> list[str]:
        """The edits under which it was measured, in words."""
        return [str(edit) for edit in self.measurement.edits]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        return self.result._repr_mimebundle_(include, exclude)

    def _parts(self) -> Iterator[tuple[list[str], ExampleRows]]:
        """For each file with results the ids of its examples, and their rows."""
        for _, table in self._tables():
            rows = example_rows(table, self.measurement)
            if rows is not None:
                yield with_it(table, self.measurement)["id"].to_pylist(), rows

    def _tables(self) -> Iterator[tuple[str, pa.Table]]:
        known = set(chunk_names(self.all_examples))
        columns = ["id", "error", MEASURED, *schema([self.measurement]).names[len(BOOKKEEPING.names) :]]
        for chunk in self.made.chunks(self.storage):
            for file in self.made.of_chunk(self.storage, chunk) if chunk in known else ():
                name = f"{self.made.folder}/{file}{SUFFIX}"
                yield file, parse(self.storage.read(name), name, columns)

    def _whole(self) -> Result:
        from lensplug.analysis.saved_results import from_bytes

        combined: Result | None = None
        for name in self._whole_names():
            part = from_bytes(self.storage.read(f"{self.made.folder}/{name}"), name)
            combined = part if combined is None else type(part).combine([combined, part])
        if combined is None:
            raise self._nothing()
        return combined

    def _whole_names(self) -> list[str]:
        """The results that are no rows, of the chunks that are done, in their order."""
        there = set(self.storage.names(self.made.folder))
        names = [
            f"{file}.{self.measurement.name}{WHOLE}"
            for file, table in self._tables()
            if any(has(table, self.measurement))  # where all failed there is none
        ]
        missing = [name for name in names if name not in there]
        if missing:
            raise LensplugError(f"{missing[0]!r} is gone from {self.made.folder!r}: run the study again.")
        return names

    def _nothing(self) -> LensplugError:
        return LensplugError(f"{self.measurement.name!r} has no results yet: study.run(), study.failures().")


def _about_a_target(values: Mapping[str, Any]) -> set[str]:
    """The column "target", where numbers are of a target of the analysis, which need not be the example's answer."""
    return {"target"} if any(name.startswith("target_") for name in values) else set()


def _targets(result: Any, rows: int) -> dict[str, list[str]]:
    """The texts of the tokens that such numbers are of, `rows` of each example."""
    texts = getattr(result, "target_texts", None)
    if texts is None:
        return {}
    return {"target": [", ".join(of_example) for of_example in texts for _ in range(rows)]}
