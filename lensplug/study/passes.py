"""Passes: one way over all examples, in which several measurements share the runs of the model.

A pass is identified by everything its numbers depend on: the study's identity, what is measured, and the versions of
the packages. It is described in `results/<pass>/pass.json`. Measurements that are asked for later are another pass, and
examples that are added later are new chunks of every pass.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lensplug.errors import LensplugError
from lensplug.provenance.versions import versions
from lensplug.study.chunk_files import FOLDER, RETRY, SUFFIX, WHOLE, is_whole, measured_in, measured_of
from lensplug.study.identity import Identity, hash_of
from lensplug.study.measurements import Measurement
from lensplug.study.storage import Storage

FILE = "pass.json"
MEASUREMENTS = "measurements"
PACKAGES = ("lensplug", "transformer-lens", "transformers", "torch")
"""Packages whose versions numbers depend on."""


@dataclass(frozen=True)
class Pass:
    """Measurements that are taken together."""

    key: str
    measurements: tuple[Measurement, ...]
    versions: Mapping[str, str]
    begun: float
    """Seconds since 1970."""

    @property
    def folder(self) -> str:
        """Where its results are."""
        return f"{FOLDER}/{self.key}"

    def is_of(self, measurement: Measurement) -> bool:
        """Whether it takes a measurement."""
        return measurement.key in {one.key for one in self.measurements}

    def is_wanted(self, wanted: Sequence[Measurement], storage: Storage) -> bool:
        """Whether all of it is still asked for, or some of it is done."""
        return {one.key for one in self.measurements} <= {one.key for one in wanted} or bool(self.done(storage))

    def done(self, storage: Storage) -> set[str]:
        """The chunks that are done."""
        return {name.removesuffix(SUFFIX) for name in storage.names(self.folder) if name.endswith(SUFFIX)}

    def set_broken_aside(self, storage: Storage) -> list[str]:
        """Rename files of results that are broken, so that their examples are measured again; their names.

        Of a chunk whose counts or activations are broken or gone, all of it is measured again; what was tried again of
        a chunk goes with it, or its examples would count twice.
        """
        there = set(storage.names(self.folder))
        aside = []
        for chunk in self.chunks(storage):
            files = self.of_chunk(storage, chunk)
            broken = [file for file in files if self._is_broken(storage, file, there)]
            aside += files if chunk in broken else broken
        for file in aside:
            for name in (f"{file}{SUFFIX}", *self._wholes(file)):
                if name in there:
                    storage.rename(f"{self.folder}/{name}", f"{self.folder}/{name}.broken")
        return [f"{self.folder}/{file}{SUFFIX}" for file in aside]

    def _is_broken(self, storage: Storage, file: str, there: set[str]) -> bool:
        """Whether a file of results cannot be read, or what belongs to it cannot, or is not among what is there."""
        measured = measured_in(storage.read(f"{self.folder}/{file}{SUFFIX}"), self.measurements)
        if measured is None:
            return True
        wholes = [name for one, name in self._wholes_of(file).items() if one in measured]
        return any(name not in there or not is_whole(storage.read(f"{self.folder}/{name}")) for name in wholes)

    def _wholes(self, file: str) -> list[str]:
        """The names of the results next to a file that are no rows."""
        return list(self._wholes_of(file).values())

    def _wholes_of(self, file: str) -> dict[str, str]:
        return {one.name: f"{file}.{one.name}{WHOLE}" for one in self.measurements if not one.way.rows}

    def lacking(self, storage: Storage, chunk: str) -> dict[str, tuple[str, ...]]:
        """For each example of a chunk that is done the names of the measurements that it has in no file."""
        found: dict[str, set[str]] = {}
        for file in self.of_chunk(storage, chunk):
            name = f"{self.folder}/{file}{SUFFIX}"
            for example, names in measured_of(storage.read(name), name, self.measurements).items():
                found.setdefault(example, set()).update(names)
        every = [one.name for one in self.measurements]
        return {example: tuple(name for name in every if name not in names) for example, names in found.items()}

    def chunks(self, storage: Storage) -> list[str]:
        """The chunks that are done, without what was tried again, in their order."""
        return sorted(name for name in self.done(storage) if RETRY not in name)

    def of_chunk(self, storage: Storage, chunk: str) -> list[str]:
        """The files of a chunk: its own, and those of examples tried again, in the order in which they were written."""
        retries = [name for name in self.done(storage) if name.startswith(f"{chunk}{RETRY}")]
        return [chunk, *sorted(retries, key=_number)]

    def next_try(self, storage: Storage, chunk: str) -> str:
        """The file for examples of a chunk that are tried again: a number above all that there are."""
        *_, last = self.of_chunk(storage, chunk)
        return f"{chunk}{RETRY}{_number(last) + 1 if last != chunk else 1}"


def _number(file: str) -> int:
    """Which try a file is of."""
    return int(file.rpartition("-")[2])


@dataclass(frozen=True)
class Declared:
    """A measurement that was asked for."""

    measurement: Measurement
    since: float = field(default_factory=time.time)


def declare(storage: Storage, measurement: Measurement) -> None:
    """Write down that something is to be measured; again changes nothing.

    Raises:
        LensplugError: If its name is that of another measurement.
    """
    for known in declared(storage):
        if known.measurement.key == measurement.key:  # its file may have the name of an older version
            return
        if known.measurement.name == measurement.name:
            raise LensplugError(
                f"{measurement.name!r} is measured with {known.measurement.in_words} already, and now asked for with"
                f" {measurement.in_words}: give this one a name, study.measure(..., name='another')."
            )
    content = json.dumps({"since": time.time(), **asdict(measurement)}, indent=1).encode()
    storage.create(f"{MEASUREMENTS}/{measurement.key}.json", content)


def forget(storage: Storage, name: str) -> None:
    """Take a measurement back; results that are there stay.

    Raises:
        LensplugError: If none has this name.
    """
    files = {file: one for file, one in _declared(storage).items() if one.measurement.name == name}
    if not files:
        names = ", ".join(repr(one.measurement.name) for one in declared(storage)) or "nothing"
        raise LensplugError(f"{name!r} is not measured in this study, but {names}.")
    for file in files:
        storage.remove(file)


def declared(storage: Storage) -> list[Declared]:
    """What is to be measured, in the order in which it was asked for."""
    return sorted(_declared(storage).values(), key=lambda one: (one.since, one.measurement.key))


def _declared(storage: Storage) -> dict[str, Declared]:
    """The name of a file -> the measurement that it asks for."""
    found = {}
    for file in (f"{MEASUREMENTS}/{name}" for name in storage.names(MEASUREMENTS)):
        written = _json(storage, file)
        edits = written.get("interventions", ())  # older studies have none
        measurement = Measurement(written["analysis"], written["options"], written["name"], edits)
        found[file] = Declared(measurement, written["since"])
    return found


def passes(storage: Storage) -> list[Pass]:
    """The passes that were begun, the oldest first."""
    found = []
    for key in storage.names(FOLDER):
        try:
            written = _json(storage, f"{FOLDER}/{key}/{FILE}")
        except FileNotFoundError:
            continue
        measurements = tuple(Measurement(**one) for one in written["measurements"])
        found.append(Pass(key, measurements, written["versions"], written["begun"]))
    return sorted(found, key=lambda one: (one.begun, one.key))


def to_run(storage: Storage, identity: Identity, chunks: Sequence[str], *, new_versions: bool) -> list[Pass]:
    """The passes that lack chunks; what was never begun is written down as a new one.

    Args:
        storage: Of the study.
        identity: Of the study.
        chunks: All chunks that there are.
        new_versions: Measure again what was begun with other versions of the packages.

    Raises:
        LensplugError: If nothing is to be measured, or a pass that lacks chunks was begun with other versions.
    """
    wanted = [one.measurement for one in declared(storage)]
    if not wanted:
        raise LensplugError("nothing is measured yet: study.measure(analysis.head_specialization, query=-1).")
    now, begun = versions(*PACKAGES), passes(storage)
    running: dict[str, Pass] = {}
    missing = []
    for measurement in wanted:
        candidates = [one for one in begun if one.is_of(measurement) and one.is_wanted(wanted, storage)]
        current = [one for one in candidates if dict(one.versions) == now]
        complete = [one for one in candidates if set(chunks) <= one.done(storage)]
        if complete and not (new_versions and not current):
            continue
        if current:
            running[current[-1].key] = current[-1]
        elif candidates and not new_versions:
            raise _other_versions(candidates[-1], now, measurement.name)
        else:
            missing.append(measurement)
    if missing:
        new = _new_pass(identity, missing, now)
        content = {"measurements": [asdict(one) for one in missing], "versions": now, "begun": new.begun}
        storage.create(f"{new.folder}/{FILE}", json.dumps(content, indent=1).encode())
        running[new.key] = new
    return [one for one in running.values() if not set(chunks) <= one.done(storage)]


def pass_of(storage: Storage, measurement: str) -> tuple[Pass, Measurement]:
    """The newest pass with a measurement of this name or analysis.

    Raises:
        LensplugError: If there is none, or several measurements are of this analysis.
    """
    begun = passes(storage)
    named = [one for one in declared(storage) if one.measurement.name == measurement]
    of_analysis = [one for one in declared(storage) if one.measurement.analysis == measurement]
    matching = named or of_analysis
    if len(matching) > 1:
        names = ", ".join(repr(one.measurement.name) for one in matching)
        raise LensplugError(f"{measurement} is measured in several ways: say which by its name, {names}.")
    for found in reversed(begun):
        for one in found.measurements:
            if matching and one.key == matching[0].measurement.key:
                return found, one
    if matching:
        raise LensplugError(f"{measurement!r} has no results yet: study.run().")
    names = ", ".join(repr(one.measurement.name) for one in declared(storage)) or "nothing"
    raise LensplugError(f"{measurement!r} is not measured in this study, but {names}.")


def _json(storage: Storage, name: str) -> dict[str, Any]:
    """What a file of the study says.

    Raises:
        LensplugError: If it is broken.
    """
    try:
        content: dict[str, Any] = json.loads(storage.read(name))
        return content
    except ValueError as error:
        raise LensplugError(f"{name!r} of {storage.place!r} is broken ({error}): restore it.") from error


def _new_pass(identity: Identity, measurements: Sequence[Measurement], now: Mapping[str, str]) -> Pass:
    key = hash_of([identity.key(), [[one.analysis, one.changed, one.name] for one in measurements], now])
    return Pass(key, tuple(measurements), now, time.time())


def _other_versions(begun: Pass, now: Mapping[str, str], name: str) -> LensplugError:
    differing = [package for package in now if begun.versions.get(package) != now[package]]
    said = ", ".join(f"{package} {begun.versions.get(package)} then and {now[package]} now" for package in differing)
    return LensplugError(
        f"the results of {name!r} were begun with other versions ({said}), and numbers of both would be mixed: go on"
        " with those, or measure everything again as a new pass, study.run(new_versions=True)."
    )
