"""What an edit is, and what it becomes in one run: hooks on activations, and keys that are not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.interventions.places import Placed, RunPositions
from lensplug.patches.unseen_keys import UnseenKeys


@dataclass(eq=False)
class ActivationHook:
    """A change of one activation, at some positions."""

    name: str
    """The hook's."""
    change: Callable[[Tensor], Tensor]
    """Takes the whole activation `[batch pos ...]`, returns what it becomes; taken where it acts."""
    positions: Placed
    generating: bool = False
    """Whether passes follow each other behind a key-value cache."""
    past: int = 0
    """Positions of the passes so far."""
    fired: int = 0
    relative: Tensor | None = None
    """The norm of what the first pass changed by, over the norm of what was there: scalar, on the device."""

    def __call__(self, activation: Tensor, hook: Any) -> Tensor:
        """What TransformerLens calls."""
        where = self.positions.now(self.past, activation.shape[1])
        if self.generating:
            self.past += activation.shape[1]
        if len(where) not in (1, len(activation)):
            raise LensplugError(
                f"an edit is of {len(where)} examples, the model runs on {len(activation)}: intervene on the inputs"
                " that are run."
            )
        self.fired += 1
        where = where.to(activation.device).reshape(*where.shape, *[1] * (activation.ndim - 2))
        changed = torch.where(where, self.change(activation), activation)
        if self.relative is None:  # of the first pass: that of the prompt
            before = activation.detach().float()
            size = before.masked_fill(~where, 0).norm().clamp(min=torch.finfo(torch.float32).tiny)
            self.relative = (changed.detach().float() - before).norm() / size
        return changed


@dataclass(frozen=True)
class Changes:
    """What an edit does in one run."""

    hooks: Sequence[ActivationHook] = ()
    unseen: Mapping[int, UnseenKeys] = field(default_factory=dict)
    """By layer."""


@runtime_checkable
class Edit(Protocol):
    """One of `lensplug.interventions`."""

    def changes(self, model: Any, positions: RunPositions) -> Changes:
        """What it does in a run of a model on these positions.

        Raises:
            LensplugError: If it cannot act there.
        """

    def __str__(self) -> str:
        """In words, for provenance."""


def refuse_missing_hook(model: Any, name: str) -> None:
    """Raise if a model has no such hook, or it does not fire."""
    if name not in model.hook_dict:
        raise LensplugError(f"the edit needs {name}, which this model has not: see lens.model.hook_dict.")
