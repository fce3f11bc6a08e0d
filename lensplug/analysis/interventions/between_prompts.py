"""A target between its value of a corrupt prompt and that of a clean one: what all results of patching have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.result import Result
from lensplug.validation.arguments import check_example, checked


@dataclass(frozen=True, repr=False)
class BetweenPrompts(Result):
    """What a change does to the target, and how much of the way from one prompt to the other that is."""

    clean: Float[Tensor, " example"]
    """The target of the clean prompt."""
    corrupt: Float[Tensor, " example"]
    rounding: Float[Tensor, " example"]
    """What rounding explains of a difference between the two; see `activation_patching`."""
    groups: Int[Tensor, "example pos"]
    """The group of each position of the corrupt prompt; -1 where nothing is patched."""
    labels: tuple[tuple[str, ...], ...]
    """Names of each example's groups."""
    layers: tuple[int, ...]

    @property
    def change(self) -> Float[Tensor, example * place]:
        """The target at each place, minus that of the corrupt prompt; NaN where there is no such place."""
        raise NotImplementedError

    @property
    def recovered(self) -> Float[Tensor, example * place]:
        """How much of the way from corrupt (0) to clean (1); NaN where there is nothing to recover.

        That is, where the two prompts differ by no more than rounding explains (`rounding`).
        """
        change, effect = self.change, self.clean - self.corrupt
        effect = effect.masked_fill(effect.abs() <= self.rounding, torch.nan)
        return change / effect.reshape(-1, *[1] * (change.ndim - 1))

    @checked
    def groups_of(self, example: int = 0) -> list[int]:
        """The numbers of the groups that an example has; elsewhere values are NaN."""
        check_example(example, len(self.clean))
        return sorted(set(self.groups[example].tolist()) - {-1})
