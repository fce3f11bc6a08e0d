"""Heads whose output is multiplied by a factor.

Method: `hook_z` of the heads, what each reads before its output matrix, is multiplied. 0 is ablation by zero, 1 changes
nothing, 2 doubles what the head writes (its share of the layer's output bias is not touched).

When to use it: for a dose and its response, when ablation alone might be out of distribution.

When not to use it: far from 1 the stream leaves its distribution; a bias that a head adds to all is scaled as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.interventions.edit import ActivationHook, Changes, refuse_missing_hook
from lensplug.interventions.equality import EqualByValue
from lensplug.interventions.layers_and_heads import Heads, Layers, heads_of, stated
from lensplug.interventions.places import Place, RunPositions, in_words
from lensplug.validation.arguments import admitted


@dataclass(frozen=True, eq=False)
class Scale(EqualByValue):
    """What these heads write is multiplied by `factor`.

    with lens.intervene(Scale(heads=[(3, 1), (4, 0)], factor=2.0)):
        logits, cache = lens.run_with_cache(inputs)
    """

    heads: Heads
    """Pairs (layer, head), or heads of each of `layers`; None: all."""
    factor: float | int
    layers: Layers = None
    positions: Place = "all"

    def __post_init__(self) -> None:
        """Raise if the factor is of another type."""
        object.__setattr__(self, "factor", admitted(self.factor, float, "factor"))

    def __str__(self) -> str:
        """In words, for provenance."""
        parts = [f"heads={self.heads!r}", f"factor={self.factor}", *stated(self.layers)]
        return f"Scale({', '.join([*parts, f'positions={in_words(self.positions)}'])})"

    def changes(self, model: Any, positions: RunPositions) -> Changes:
        """The hooks of a run.

        Raises:
            LensplugError: If the heads are not there, or the factor is no number.
        """
        if not math.isfinite(self.factor):
            raise LensplugError(f"factor is {self.factor}, expected a number.")
        placed = positions.place(self.positions, "positions")
        hooks = []
        for layer, heads in heads_of(self.layers, self.heads, model.cfg.n_layers, model.cfg.n_heads).items():
            refuse_missing_hook(model, name := f"blocks.{layer}.attn.hook_z")
            hooks.append(ActivationHook(name, partial(self._scaled, heads), placed, positions.generating))
        return Changes(hooks)

    def _scaled(self, heads: list[int] | None, z: Float[Tensor, "batch pos head d_head"]) -> Tensor:
        if heads is None:
            return z * self.factor
        factors = torch.ones(z.shape[2], dtype=z.dtype, device=z.device)
        factors[heads] = self.factor
        return z * factors[:, None]
