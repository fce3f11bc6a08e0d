"""`ResamplerAttention`: where the positions that a resampler makes look in the picture, by its own cross-attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.locating.located import Geometry
from lensplug.positions.modality_map import MediumName
from lensplug.validation.arguments import checked


@dataclass(frozen=True, eq=False)
class ResamplerAttention:
    """The cross-attention by which a resampler (Perceiver, Q-Former) makes the positions of one medium."""

    kind: MediumName
    media_index: int
    example: int
    probabilities: Float[Tensor, "layer head token state"]
    """Of each position, to the encoder's states of its view. What is missing to 1 is on the resampler's own latents,
    where it attends to these too."""
    view: Int[Tensor, " token"]
    """Of which view's states, counted in the order of the prompt (pieces and the whole image, frames, windows)."""
    states: Geometry
    """Where those states lie, view after view, as `lens.locate` measures positions; a class token has no place."""
    inputs: MultimodalInput = field(repr=False)
    """The inputs that were given."""

    @property
    def n_views(self) -> int:
        """How many views the medium has."""
        return len(self.states) // self.probabilities.shape[-1]

    @checked
    def over_states(
        self, values: Float[Tensor, " token"], *, layer: int | Literal["mean"] = "mean"
    ) -> Float[Tensor, " state"]:
        """Values of positions, spread over the encoder's states as the resampler attends to them.

        The sum stays (less what lies on latents). It says which states the values were *read through*; a state of an
        encoder with attention knows of the rest of the picture too.

        Args:
            values: One for each position of the medium; NaN is left out.
            layer: Which of the resampler's layers with cross-attention; by default the mean of all. Heads are averaged.

        Returns:
            One value for each of the states, view after view.

        Raises:
            LensplugError: If there is not one value a position, or no such layer.
        """
        n_layers, _, n_tokens, n_states = self.probabilities.shape
        if values.shape != (n_tokens,):
            raise LensplugError(f"{list(values.shape)} values for {n_tokens} positions: give one value a position.")
        if layer != "mean" and not -n_layers <= layer < n_layers:
            raise LensplugError(f"layer is {layer}, the resampler has {n_layers} layers with cross-attention.")
        of_heads = self.probabilities.mean(dim=1)
        attention = of_heads.mean(dim=0) if layer == "mean" else of_heads[layer]
        spread = torch.zeros(self.n_views, n_states)
        spread.index_add_(0, self.view, values.detach().float().cpu().nan_to_num(nan=0.0)[:, None] * attention)
        return spread.flatten()

    def __str__(self) -> str:
        """A few lines."""
        n_layers, n_heads, n_tokens, n_states = self.probabilities.shape
        on_states = float(self.probabilities.sum(dim=-1).mean())
        return "\n".join(
            [
                f"{self.kind} {self.media_index} of example {self.example}: {n_tokens} positions of {self.n_views}"
                f" view{'s' * (self.n_views != 1)}, each made from the {n_states} states of the encoder in its view",
                f"  by {n_layers} layer{'s' * (n_layers != 1)} of cross-attention with {n_heads} heads; {on_states:.0%}"
                " of it is on those states",
                "  it says through which states a position was made, not where the encoder had the fact from",
            ]
        )
