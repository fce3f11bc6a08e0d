"""Head specialization by layer: are there stages of processing?

Method, for each layer, from a `HeadSpecialization` of several examples:

1. Mean mass: mass[l, c] = 1/H · Σ_h mass[l, h, c], for each class c and each view of the image (base, tiles, newlines).
2. Share of heads: the fraction of heads with at least two thirds of their mass on class c.
3. Standard errors over examples: s / sqrt(n).

When to use it: most heads attend to one class; how many attend to the image changes with depth, which one line per
layer shows better than hundreds of cells.

When not to use it: a layer's mean hides the one head that matters (`HeadSpecialization.top`).

Example:
    heads = analysis.head_specialization(cache, inputs.modality, query=-1)
    analysis.HeadSpecialization.combine([heads, heads]).by_layer().to_dataframe()
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result

if TYPE_CHECKING:
    import pandas as pd

DOMINANT = 2 / 3
"""A head looks at the class that has this share of its attention."""


@dataclass(frozen=True, repr=False)
class HeadsByLayer(Result):
    """Mean mass, and shares of heads, of each layer."""

    label_columns = ("layer", "measure", "name")
    main_number = "mean"

    mass: Float[Tensor, "layer class"]
    """The mean over heads, then over the examples that have the class in sight; NaN where none has."""
    mass_standard_error: Float[Tensor, "layer class"]
    """Over examples; NaN below two."""
    chance: Float[Tensor, "layer class"]
    share: Float[Tensor, "layer label"]
    """Fraction of the heads that look at a class (two thirds of their mass in one example); a layer sums to 1."""
    share_standard_error: Float[Tensor, "layer label"]
    count: Int[Tensor, "layer class"]
    """How many examples have the class in sight."""
    classes: tuple[str, ...]
    """Modalities and "sink", then the views of the image: "image: base", "image: tiles", "image: newline"."""
    labels: tuple[str, ...]
    """Modalities and "sink", then "mixed", and "nothing" where some heads had a left-out sink alone."""
    examples: int
    provenance: Provenance

    @classmethod
    def of(
        cls,
        mass: Float[Tensor, "example layer head class"],
        chance: Float[Tensor, "example layer class"],
        classes: tuple[str, ...],
        *,
        modalities: tuple[str, ...],
        provenance: Provenance,
    ) -> HeadsByLayer:
        """Summarise the masses of heads by layer.

        Args:
            mass: Mass on each class.
            chance: The mass under uniform attention.
            classes: Modalities and "sink", then the views of the image, which are parts of it.
            modalities: The first of them, without the views: what a head can look at.
            provenance: Provenance of the masses.
        """
        of_layer = mass.nanmean(dim=2)  # a head that lay wholly on a left-out sink has no mass to average
        label_index = looks_at(mass[..., : len(modalities)])
        shares = torch.nn.functional.one_hot(label_index, len(modalities) + 2).double().mean(dim=2)
        labels = (*modalities, "mixed", "nothing")
        shown_labels = [i for i, name in enumerate(labels) if name != "nothing" or bool(shares[..., i].any())]
        shares = shares[..., shown_labels]
        return cls(
            mass=of_layer.nanmean(dim=0),
            mass_standard_error=standard_error(of_layer),
            chance=chance.nanmean(dim=0),
            share=shares.mean(dim=0),
            share_standard_error=standard_error(shares),
            count=(~chance.isnan()).sum(dim=0),
            classes=classes,
            labels=tuple(labels[i] for i in shown_labels),
            examples=len(mass),
            provenance=provenance,
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each layer and class ("mass"), and for each layer and label ("heads")."""
        import pandas as pd

        rows = []
        for layer in range(len(self.mass)):
            for index, name in enumerate(self.classes):
                rows.append(
                    {
                        "layer": layer,
                        "measure": "mass",
                        "name": name,
                        "mean": float(self.mass[layer, index]),
                        "standard_error": float(self.mass_standard_error[layer, index]),
                        "chance": float(self.chance[layer, index]),
                        "count": int(self.count[layer, index]),
                    }
                )
            for index, name in enumerate(self.labels):
                rows.append(
                    {
                        "layer": layer,
                        "measure": "heads",
                        "name": name,
                        "mean": float(self.share[layer, index]),
                        "standard_error": float(self.share_standard_error[layer, index]),
                        "chance": math.nan,
                        "count": self.examples,
                    }
                )
        return pd.DataFrame(rows)


def looks_at(mass: Float[Tensor, "*axes modality"]) -> Int[Tensor, "*axes"]:
    """The class that has two thirds of the mass; one past the last where none has, two past where there is no mass."""
    finite = mass.nan_to_num(0)
    total = finite.sum(dim=-1, keepdim=True)
    best = (finite / total).max(dim=-1)
    classes = mass.shape[-1]
    # Sums of floats that are two thirds on paper may be below by their rounding.
    label_index = torch.where(best.values >= DOMINANT - 1e-6, best.indices, classes)
    return torch.where(total[..., 0] > 0, label_index, classes + 1)


def standard_error(values: Float[Tensor, "example ..."]) -> Float[Tensor, ...]:
    """Standard error of the mean over examples: s / sqrt(n), NaN ignored; NaN for fewer than two examples."""
    # Counted here for each number: a head that rests wholly on a sink that is left out has none in that example.
    count = (~values.isnan()).sum(dim=0)
    squares = (values - values.nanmean(dim=0)).square().nansum(dim=0)
    return (squares / (count - 1).clamp(min=0) / count).sqrt().masked_fill(count < 2, math.nan)
