"""Steering: a direction is added to the residual stream.

Method: in each layer, x becomes x + scale * |x| * d / |d| at the chosen positions (`relative=True`): a scale of 0.1 is
a tenth of the stream's own norm there, in every layer and model. With `relative=False`, x becomes x + scale * d.

A direction is a difference of means (`analysis.difference_of_means`), a probe's (`analysis.probe(...).direction`), or a
row of an SAE's decoder.

Papers: Turner et al. 2023, "Activation Addition", arXiv 2308.10248; Rimsky et al. 2024, "Steering Llama 2 via
Contrastive Activation Addition", arXiv 2312.06681.

When to use it: to ask whether a direction is used as one thinks: compare with random directions of the same norm.

When not to use it: as a proof that the model uses the direction by itself; large scales leave the distribution, and any
direction then changes the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.interventions.edit import ActivationHook, Changes, refuse_missing_hook
from lensplug.interventions.equality import EqualByValue
from lensplug.interventions.layers_and_heads import Layers, in_their_order, stated
from lensplug.interventions.places import Place, RunPositions, in_words
from lensplug.interventions.tensors import tensor_in_words
from lensplug.validation.arguments import admitted, described


@dataclass(frozen=True, eq=False)
class Steer(EqualByValue):
    """A direction is added to the residual stream behind these layers.

    with lens.intervene(Steer(direction, layers=range(8, 16), scale=0.1)) as acted:
        lens.generate(inputs).text
    acted.to_dataframe()                           # how large the change was, beside the stream
    """

    direction: Float[Tensor, " d_model"] | Float[Tensor, "layer d_model"]
    """One for all layers, or one for each of `layers`, in their order."""
    layers: Layers = None
    """The stream is changed where these layers have written to it (`resid_post`)."""
    positions: Place = "all"
    scale: float | int = 1.0
    """In units of the stream's norm at each position (`relative`), else of the direction itself; negative: away."""
    relative: bool = True

    def __post_init__(self) -> None:
        """Raise if an option is of another type."""
        object.__setattr__(self, "direction", admitted(self.direction, Tensor, "direction"))
        object.__setattr__(self, "scale", admitted(self.scale, float, "scale"))
        if not math.isfinite(self.scale):
            raise LensplugError(f"scale is {self.scale}, expected a number.")
        admitted(self.relative, bool, "relative")

    def __str__(self) -> str:
        """In words, for provenance."""
        absolute = [] if self.relative else ["relative=False"]
        numbers = [f"positions={in_words(self.positions)}", f"scale={self.scale}", *absolute]
        return f"Steer({', '.join([tensor_in_words(self.direction), *stated(self.layers), *numbers])})"

    def changes(self, model: Any, positions: RunPositions) -> Changes:
        """The hooks of a run.

        Raises:
            LensplugError: If the direction is not one of the stream's, or zero.
        """
        layers, placed = in_their_order(self.layers, model.cfg.n_layers), positions.place(self.positions, "positions")
        if len(set(layers)) < len(layers):
            raise LensplugError(f"layers is {self.layers!r}, and names a layer twice.")
        hooks = []
        for layer, direction in zip(layers, self._directions(layers, model.cfg.d_model), strict=True):
            refuse_missing_hook(model, name := f"blocks.{layer}.hook_resid_post")
            hooks.append(ActivationHook(name, partial(self._steered, direction), placed, positions.generating))
        return Changes(hooks)

    def _directions(self, layers: Sequence[int], d_model: int) -> list[Float[Tensor, " d_model"]]:
        direction = self.direction
        if not isinstance(direction, Tensor) or direction.shape not in ((d_model,), (len(layers), d_model)):
            raise LensplugError(
                f"direction is {described(direction)}, expected a tensor [{d_model}], or [{len(layers)}, {d_model}],"
                " one for each layer."
            )
        directions = direction.detach().float().expand(len(layers), -1)
        norms = directions.norm(dim=-1)
        if not bool(norms.isfinite().all()) or bool((norms == 0).any()):
            raise LensplugError("direction is zero, or holds NaN or infinity: there is nothing to steer along.")
        return list(directions / norms[:, None] if self.relative else directions)

    def _steered(self, direction: Float[Tensor, " d_model"], resid: Float[Tensor, "batch pos d_model"]) -> Tensor:
        step = self.scale * direction.to(resid.device)
        if self.relative:
            step = resid.float().norm(dim=-1, keepdim=True) * step
        return resid + step.to(resid.dtype)
