"""The places of a layer, patched side by side in edited runs of the corrupt prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.interventions.measured_target import MeasuredTarget
from lensplug.analysis.interventions.patched_places import Places
from lensplug.analysis.protocols import EditedRuns


@dataclass(frozen=True)
class PatchingSweep:
    """One layer after another, places side by side."""

    runs: EditedRuns
    places: Places
    measured: MeasuredTarget
    one_head: bool
    """Whether a place is one head, or all of them."""

    def of_layer(
        self,
        layer: int,
        clean: Mapping[str, Tensor],
        done: Callable[[int, float], None],
        places: Sequence[tuple[int, int]] | None = None,
    ) -> Float[Tensor, "place example"]:
        """The target with each place of a layer patched.

        Args:
            layer: Which; of several that are patched together, the first.
            clean: Names of hooks, and their clean activations at the positions of the corrupt prompt.
            done: Called after each batch with how many runs it was, and the seconds that it took.
            places: Groups and heads; all by default.
        """
        values = []
        for batch in self.places.batches(self.runs.batch, places):
            begun = perf_counter()
            hooks = [(name, self._patched(batch, value)) for name, value in clean.items()]
            first = self.places.first_position(batch)
            logits = self.runs.logits(len(batch), hooks, from_layer=layer, from_position=first)
            values.append(self.measured.of_copies(logits))
            done(len(batch), perf_counter() - begun)
        return torch.cat(values)

    def _patched(self, batch: Sequence[tuple[int, int]], clean: Tensor) -> Any:
        def patched(corrupt: Tensor, hook: Any) -> Tensor:
            copies = corrupt.view(len(batch), -1, *corrupt.shape[1:])
            where = self.places.masks(batch, copies[0], self.one_head)
            return torch.where(where, clean.to(corrupt), copies).flatten(0, 1)

        return patched
