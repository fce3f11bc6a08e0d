"""How far a run is: a progress bar that counts files of results, whoever wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from lensplug.study.claims import Claims
from lensplug.study.passes import Pass
from lensplug.study.storage import Storage


@dataclass
class Progress:
    """The progress bar of a run: examples, their rate, the time left."""

    counts: Mapping[str, int]
    """Chunk -> how many examples it has."""
    passes: Sequence[Pass]
    storage: Storage
    shown: bool = True

    def __enter__(self) -> Progress:
        names = ", ".join(measurement.name for one in self.passes for measurement in one.measurements)
        total = sum(self.counts.values()) * len(self.passes)
        self.bar = tqdm(total=total, desc=names, unit="example", disable=None if self.shown else True)
        self.look()
        self.bar.initial = self.bar.n  # the rate is of this run
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    @property
    def chunks(self) -> int:
        """How many chunks there are to be done."""
        return len(self.counts) * len(self.passes)

    def look(self) -> int:
        """Show the chunks that are done now, whoever did them; how many there are."""
        done = [self.counts[chunk] for one in self.passes for chunk in one.done(self.storage) if chunk in self.counts]
        self.bar.update(sum(done) - self.bar.n)
        return len(done)

    def is_work_left(self) -> bool:
        """Whether there is a chunk that is not done, and that no living process has."""
        return any(
            not Claims(self.storage, one.key).is_claimed(chunk)
            for one in self.passes
            for chunk in self.counts.keys() - one.done(self.storage)
        )
