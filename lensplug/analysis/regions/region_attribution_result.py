"""The result of `region_attribution`: a value for each region of a picture, of a sound or of the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.over_examples import OverExamples
from lensplug.analysis.provenance import Provenance, refuse_other_making
from lensplug.analysis.regions.places import Kind
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.validation.arguments import at_least, check_example, checked

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class RegionAttribution(Result):
    """How much each region adds to the target; NaN behind the last region of an example that has fewer."""

    label_columns = ("example", "region")
    main_number = "value"
    example_depth = {"names": 0, "masks": 0}

    values: Float[Tensor, "example region"]
    """In logits, or nats where log-probabilities are measured."""
    standard_error: Float[Tensor, "example region"]
    """Of a value over the orders that were drawn; 0 where nothing was drawn, NaN where it is not known (KernelShap)."""
    full: Float[Tensor, " example"]
    """The target with every region as it is."""
    none: Float[Tensor, " example"]
    """The target with every region blanked."""
    runs: Int[Tensor, " example"]
    """How many sets of regions were run."""
    names: tuple[tuple[str, ...], ...]
    """What the regions of each example are called."""
    kind: Kind
    """What they are parts of: "image", "audio" or "text"."""
    provenance: Provenance
    boxes: Float[Tensor, "example region 4"] | None = None
    """Of a picture: x0 y0 x1 y1 around each region, in its pixels."""
    masks: tuple[Bool[Tensor, "region _height _width"], ...] = ()
    """Of a picture: the pixels of each region, for each example."""
    spans_s: Float[Tensor, "example region 2"] | None = None
    """Of a sound: start and end of each region, in seconds."""
    grid: tuple[int, int] | None = None
    """Rows and columns, where the regions are the cells of a grid."""
    media_index: int = 0
    """Which picture or sound of each example."""
    measure: str = "logit"
    """What the target is read in: "logit" or "log_probability"."""

    @property
    def residual(self) -> Float[Tensor, " example"]:
        """Full - none - the sum of the values: 0 for Shapley values, but for rounding; near 0 for KernelShap.

        By occlusion it is what regions do together: below 0 where each alone is enough and the others stand in.
        """
        return self.full - self.none - self.values.nansum(dim=1)

    @property
    def unit(self) -> str:
        """What the values are in."""
        return "logits" if self.measure == "logit" else "nats"

    @checked
    def top(self, k: int = 5, *, example: int = 0) -> pd.DataFrame:
        """The regions with the largest absolute values, the strongest first.

        Args:
            k: How many.
            example: Of which example.

        Raises:
            LensplugError: If there is no such example, or k is below 1.
        """
        at_least(1, k=k)
        check_example(example, len(self.names))
        table = self.to_dataframe()
        of_example = table[table.example == example]
        order = of_example["value"].abs().sort_values(ascending=False, kind="stable").index[:k]
        return of_example.loc[order].reset_index(drop=True)

    @classmethod
    @checked
    def combine(cls, results: Sequence[RegionAttribution]) -> RegionAttribution:
        """The examples of several results as one; those with fewer regions end with NaN.

        Raises:
            LensplugError: If they are of several models, options or kinds of regions, or there is none.
        """
        refuse_other_making(results)
        first = results[0]
        for result in results[1:]:
            if (result.kind, result.media_index) != (first.kind, first.media_index):
                raise LensplugError(
                    f"results cannot be combined: regions are of {first.kind} {first.media_index} in the first, and of"
                    f" {result.kind} {result.media_index} in another."
                )
        longest = max(result.values.shape[1] for result in results)
        joined: dict[str, Any] = {
            name: torch.cat([getattr(result, name) for result in results]) for name in ("full", "none", "runs")
        }
        for name in ("values", "standard_error", "boxes", "spans_s"):
            if getattr(first, name) is not None:
                joined[name] = torch.cat([_lengthened(getattr(result, name), longest) for result in results])
        for name in ("names", "masks"):
            joined[name] = tuple(entry for result in results for entry in getattr(result, name))
        grids = {result.grid for result in results}
        return replace(first, grid=first.grid if len(grids) == 1 else None, **joined)

    def over_examples(self) -> OverExamples:
        """The value of each region, where all examples have the same ones.

        Raises:
            LensplugError: If they have not, as words have not.
        """
        if len(set(self.names)) > 1:
            raise LensplugError(
                "the examples have different regions, which cannot be averaged: give each the same, by name"
                " (regions={'the shape': box, ...}), or take a grid."
            )
        return OverExamples({"region": list(self.names[0])}, {"value": self.values.double()})

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example and region, with where it is."""
        import pandas as pd

        rows = []
        for example, names in enumerate(self.names):
            for region, name in enumerate(names):
                row: dict[str, Any] = {
                    "example": example,
                    "region": name,
                    "value": float(self.values[example, region]),
                    "standard_error": float(self.standard_error[example, region]),
                }
                if self.boxes is not None:
                    row |= dict(zip(("x0", "y0", "x1", "y1"), self.boxes[example, region].tolist(), strict=True))
                if self.spans_s is not None:
                    row |= dict(zip(("start_s", "end_s"), self.spans_s[example, region].tolist(), strict=True))
                rows.append(row)
        return pd.DataFrame(rows)


def _lengthened(values: Tensor, length: int) -> Tensor:
    """NaN behind the regions that there are."""
    more = torch.full((len(values), length - values.shape[1], *values.shape[2:]), torch.nan)
    return torch.cat([values, more], dim=1)
