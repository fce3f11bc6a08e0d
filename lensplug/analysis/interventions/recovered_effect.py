"""What is recovered of an effect at each place: the form of results of patching, whatever way they were made."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.interventions.between_prompts import BetweenPrompts
from lensplug.analysis.interventions.patched_places import Activation, PatchedPlaces
from lensplug.analysis.provenance import Provenance
from lensplug.errors import LensplugError
from lensplug.validation.arguments import check_example, checked

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class RecoveredEffect(BetweenPrompts):
    """The target between its value of the corrupt prompt and that of the clean one, by layer, group and head."""

    label_columns = ("example", "layer", "group", "label", "head")
    main_number = "recovered"
    example_depth = {"labels": 0}

    activation: Activation
    by: PatchedPlaces
    provenance: Provenance

    @property
    def change(self) -> Float[Tensor, "example layer group head"]:
        """The target at each place, minus that of the corrupt prompt; NaN where an example has no such group."""
        raise NotImplementedError

    @checked
    def by_position(self, example: int = 0) -> dict[str, Float[Tensor, " pos"]]:
        """What each position's group recovers in each layer, for overlays; NaN where nothing is patched.

        Raises:
            LensplugError: If it was not patched by position, with all heads together.
        """
        check_example(example, len(self.clean))
        if self.by != "position":
            raise LensplugError(f"this was patched by {self.by}: an overlay needs by='position'.")
        group_of_position = self.groups[example]
        rows = self.recovered[example, :, :, 0][:, group_of_position.clamp(min=0)].masked_fill(
            group_of_position < 0, torch.nan
        )
        return {f"layer {layer}": row for layer, row in zip(self.layers, rows, strict=True)}

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example, layer, group and head; head -1 is all of them."""
        import pandas as pd

        change, recovered = self.change, self.recovered
        examples, layers, _, heads = change.shape
        return pd.DataFrame(
            {
                "example": example,
                "layer": self.layers[layer],
                "group": group,
                "label": self.labels[example][group],
                "head": -1 if self.by == "position" else head,
                "value": float(self.corrupt[example] + change[example, layer, group, head]),
                "recovered": float(recovered[example, layer, group, head]),
                **{name: float(each[example, layer, group, head]) for name, each in self.more_columns().items()},
            }
            for example in range(examples)
            for layer, group, head in product(range(layers), self.groups_of(example), range(heads))
        )

    def more_columns(self) -> dict[str, Float[Tensor, "example layer group head"]]:
        """Further columns of `to_dataframe`."""
        return {}
