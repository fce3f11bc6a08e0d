"""What head specialization measured, and its three readings: mass, preference, ratio.

**Mass** is where a head looks: the fraction of its attention on a class of positions, from 0 to 1. **Preference** is
what its share of the positions does not explain: the log-odds of the mass less those of chance, in nats; 0 is uniform
attention, and swapping a class for the rest changes the sign alone. **Ratio** is mass over chance, which cannot exceed
1 / chance: where 98 % of the positions are image, a head with all of its mass there has 1.02.

A head can look at the image (most of its mass is there) and prefer the text (more of it is there than by chance). Each
measure is computed per example, against the chance of that example; an average is the mean of the examples' readings,
and its standard error that of this mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.attention.heads_by_layer import HeadsByLayer, looks_at, standard_error
from lensplug.analysis.over_examples import OverExamples, grid
from lensplug.analysis.provenance import Provenance, refuse_other_making
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.positions.modality_map import MODALITIES
from lensplug.reductions.modality_mass import VIEWS
from lensplug.validation.arguments import at_least, checked

if TYPE_CHECKING:
    import pandas as pd

SINK = "sink"
"""The class of the positions where heads rest."""
CLASSES = (*MODALITIES, SINK)
"""Every class there is, in the order in which results list them."""
Reading = Literal["mass", "preference", "ratio"]
READINGS: tuple[Reading, ...] = get_args(Reading)
PREFERS = math.log(2)
"""A head prefers the class with the largest preference if that is so large: odds twice those of uniform attention."""
CLAMP = 1e-6
"""For log-odds, mass and chance are not below this, nor above 1 less this: what fp32 sums of attention still tell from
0, and below the chance of one position among a million. No preference is beyond 13.8 nats and chance's own log-odds."""


@dataclass(frozen=True, repr=False)
class HeadSpecialization(Result):
    """Attention by layer, head and class (a modality, or the sink), from one query position of each example."""

    axis_labels = {"modality": ("modalities", CLASSES), "view": ("views", VIEWS)}
    label_columns = ("layer", "head", "modality")
    main_number = "mass"
    standard_errors = {name: f"{name}_standard_error" for name in READINGS}

    mass: Float[Tensor, "example layer head modality"]
    """Fraction of the query's attention on the class (0 to 1, over the classes 1); NaN where it is not in sight."""
    chance: Float[Tensor, "example layer modality"]
    """The mass under uniform attention over the positions that the layer allows."""
    entropy: Float[Tensor, "example layer head modality"]
    """Entropy of the attention inside the class, normalised there, in nats; 0 = one position, ln n = uniform."""
    largest: Float[Tensor, "example layer head modality"]
    """The largest weight on one position of the class (0 to 1)."""
    modalities: tuple[str, ...]
    """The classes: modalities, and "sink"."""
    query: Int[Tensor, " example"]
    """The query position of each example, from the left."""
    provenance: Provenance
    views: tuple[str, ...] = ()
    """The parts of images whose place is known: "base" (an image as a whole), "tiles", "newline"; they are its mass."""
    view_mass: Float[Tensor, "example layer head view"] | None = None
    """Fraction of the attention on each view; NaN where it is not in sight."""
    view_chance: Float[Tensor, "example layer view"] | None = None

    @property
    def preference(self) -> Float[Tensor, "example layer head modality"]:
        """ln(m / (1 - m)) - ln(c / (1 - c)) of mass m and chance c, in nats.

        0 is uniform attention; also where a class is all that is in sight: there is nothing to prefer. Mass and chance
        are clamped to 1e-6 and 1 - 1e-6. NaN where the class is not in sight.
        """
        mass, chance = (value.clamp(CLAMP, 1 - CLAMP) for value in (self.mass, self.chance[:, :, None]))
        # Quotients that are 1 are exactly 1 in fp32, and uniform attention is 0.
        return (mass / chance).float().log() - ((1 - mass) / (1 - chance)).float().log()

    @property
    def ratio(self) -> Float[Tensor, "example layer head modality"]:
        """Mass over chance: 1 = uniform attention; at most 1 / chance."""
        return (self.mass / self.chance[:, :, None]).float()

    @property
    def count(self) -> Int[Tensor, "layer modality"]:
        """In how many examples a layer's query has the class in sight."""
        return (~self.chance.isnan()).sum(dim=0)

    @property
    def mean(self) -> Float[Tensor, "layer head modality"]:
        """Mean of `ratio` over examples; `average` has the other readings."""
        return self.average("ratio")

    @property
    def standard_error(self) -> Float[Tensor, "layer head modality"]:
        """Standard error of `mean`."""
        return self.error("ratio")

    @checked
    def average(self, by: Reading = "mass") -> Float[Tensor, "layer head modality"]:
        """The mean of a reading ("mass", "preference", "ratio") over the examples that have the class in sight."""
        return self._reading(by).nanmean(dim=0)

    @checked
    def error(self, by: Reading = "mass") -> Float[Tensor, "layer head modality"]:
        """The standard error of `average`: sample standard deviation over the root of the count; NaN below two."""
        return standard_error(self._reading(by))

    @property
    def labels(self) -> list[list[str]]:
        """For each layer and head, what it looks at: the class with two thirds of its mass, or "mixed".

        By the average masses, which are made to sum to 1 where examples differ in what they have. "nothing" where all
        attention lay on a sink that was left out.
        """
        names = (*self.modalities, "mixed", "nothing")
        return [[names[index] for index in row] for row in looks_at(self.average()).tolist()]

    @property
    def prefers(self) -> list[list[str]]:
        """For each layer and head: the class with the largest average preference, if that is ln 2 nats, or "nothing".

        Odds of ln 2 nats are twice those of uniform attention.
        """
        best = self.average("preference").nan_to_num(-math.inf).max(dim=-1)
        return [
            [self.modalities[index] if value >= PREFERS else "nothing" for value, index in zip(*row, strict=True)]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    @checked
    def in_words(self, layer: int, head: int) -> str:
        """Both readings of a head in one sentence.

        Raises:
            LensplugError: If there is no such layer or head.
        """
        layers, heads = self.mass.shape[1:3]
        if not (0 <= layer < layers and 0 <= head < heads):
            raise LensplugError(f"layer {layer}, head {head} is asked for, the result has {layers} x {heads}, from 0.")
        label, preferred = self.labels[layer][head], self.prefers[layer][head]
        looks = {"mixed": "looks at no class with two thirds of its attention", "nothing": "rests on the sink alone"}
        text = looks.get(label)
        if text is None:
            class_index = self._index(label)
            chance = float(self.chance[:, layer, class_index].nanmean())
            mass = float(self.average()[layer, head, class_index])
            text = f"looks at {_the(label)} ({mass:.3f} of its attention, chance {chance:.3f})"
        if preferred == "nothing":
            return f"layer {layer}, head {head} {text} and prefers nothing"
        nats = float(self.average("preference")[layer, head, self._index(preferred)])
        return f"layer {layer}, head {head} {text} and prefers {_the(preferred)} ({nats:+.1f} nats)"

    @checked
    def top(self, modality: str, k: int = 10, *, by: Reading = "mass") -> list[tuple[int, int, float]]:
        """The k heads with the largest average on a class: (layer, head, value).

        Args:
            modality: One of `modalities`.
            k: How many; fewer where fewer heads have a value.
            by: "mass" (which look there most), "preference" or "ratio" (which do so most beyond chance).

        Raises:
            LensplugError: If there is no such class or reading.
        """
        at_least(1, k=k)
        scores = self.average(by)[..., self._index(modality)].flatten()
        order = scores.nan_to_num(-math.inf).argsort(descending=True, stable=True)
        order = order[: min(k, int((~scores.isnan()).sum()))]
        heads = self.mass.shape[2]
        return [(*divmod(index, heads), float(scores[index])) for index in order.tolist()]

    def by_layer(self) -> HeadsByLayer:
        """Each layer in a line: mean mass, and the share of heads with each label, over the examples."""
        mass, chance, classes = self.mass, self.chance, (*self.modalities, *(f"image: {view}" for view in self.views))
        if self.view_mass is not None and self.view_chance is not None:
            mass, chance = torch.cat([mass, self.view_mass], dim=-1), torch.cat([chance, self.view_chance], dim=-1)
        return HeadsByLayer.of(mass, chance, classes, modalities=self.modalities, provenance=self.provenance)

    @classmethod
    @checked
    def combine(cls, results: Sequence[HeadSpecialization]) -> HeadSpecialization:
        """Results of one model combined along examples; a class that a result lacks counts as not visible there.

        Raises:
            LensplugError: If they have different models or conventions, or there are no results.
        """
        refuse_other_making(results)
        first = results[0]
        for next_result in results[1:]:
            if next_result.mass.shape[1:3] != first.mass.shape[1:3]:
                raise LensplugError(
                    f"results of {list(first.mass.shape[1:3])} and {list(next_result.mass.shape[1:3])} layers and heads"
                    " cannot be combined: give results of one model."
                )
        names = tuple(name for name in CLASSES if any(name in result.modalities for result in results))
        views = tuple(name for name in VIEWS if any(name in result.views for result in results))
        wide = [result._spread(names, views) for result in results]
        tensors = ["mass", "chance", "entropy", "largest", "query", *(("view_mass", "view_chance") if views else ())]
        joined: dict[str, Any] = {name: torch.cat([getattr(result, name) for result in wide]) for name in tensors}
        return replace(first, modalities=names, views=views, **joined)

    @checked
    def to_dataframe(self, *, per_example: bool = False) -> pd.DataFrame:
        """One row for each layer, head and class: the average readings, standard errors, count and labels.

        Args:
            per_example: One row for each example as well, with its own readings.
        """
        import pandas as pd

        if per_example:
            return pd.DataFrame(self._rows_of_examples())
        # Whole columns: a large model has tens of thousands of rows.
        sizes = self.mass.shape[1:]
        layer, head, index = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, sizes), indexing="ij"))
        numbers = {
            "mass": self.average("mass"),
            "chance": self.chance.nanmean(dim=0)[:, None].expand(sizes),
            **{name: self.average(name) for name in READINGS[1:]},
            **{f"{name}_standard_error": self.error(name) for name in READINGS},
            "count": (~self.mass.isnan()).sum(dim=0),
            "entropy_nats": self.entropy.nanmean(dim=0),
            "largest_weight": self.largest.nanmean(dim=0),
        }
        words = {"label": self.labels, "prefers": self.prefers}
        return pd.DataFrame(
            {
                "layer": layer.numpy(),
                "head": head.numpy(),
                "modality": [self.modalities[i] for i in index.tolist()],
                **{name: _column(values) for name, values in numbers.items()},
                **{
                    name: [word for row in rows for word in row for _ in self.modalities]
                    for name, rows in words.items()
                },
            }
        )

    def by_example(self) -> dict[str, Float[Tensor, "example row"]]:
        """The readings of each example, in the rows of `to_dataframe`."""
        return {name: self._reading(name).flatten(1) for name in READINGS}

    def over_examples(self) -> OverExamples:
        """Mass, preference and ratio by layer, head and class; entropy and largest weight inside the class."""
        layers, heads = self.mass.shape[1:3]
        readings: dict[str, Tensor] = {name: self._reading(name).flatten(1) for name in READINGS}
        inside = {"entropy_nats": self.entropy.flatten(1), "largest_weight": self.largest.flatten(1)}
        return OverExamples(
            grid(layer=range(layers), head=range(heads), modality=self.modalities), {**readings, **inside}
        )

    def _rows_of_examples(self) -> dict[str, object]:
        """Whole columns: examples x heads are many rows."""
        sizes = self.mass.shape
        example, layer, head, index = (
            axis.flatten() for axis in torch.meshgrid(*map(torch.arange, sizes), indexing="ij")
        )
        measured = {"mass": self.mass, "preference": self.preference, "ratio": self.ratio}
        columns: dict[str, object] = {
            "example": example.numpy(),
            "layer": layer.numpy(),
            "head": head.numpy(),
            "modality": [self.modalities[i] for i in index.tolist()],
            "query": self.query[example].numpy(),
            **{name: values.double().flatten().numpy() for name, values in measured.items()},
            "chance": self.chance[example, layer, index].double().numpy(),
            "entropy_nats": self.entropy.double().flatten().numpy(),
            "largest_weight": self.largest.double().flatten().numpy(),
        }
        return columns

    def _reading(self, by: Reading) -> Float[Tensor, "example layer head modality"]:
        values: Tensor = getattr(self, by)
        return values

    def _index(self, modality: str) -> int:
        if modality not in self.modalities:
            raise LensplugError(f"modality is {modality!r}, this result has {', '.join(self.modalities)}.")
        return self.modalities.index(modality)

    def _spread(self, names: tuple[str, ...], views: tuple[str, ...]) -> HeadSpecialization:
        """The result extended by classes and views of other results, which are not visible here."""
        fields_of_union: dict[str, Any] = {
            name: wider(getattr(self, name), self.modalities, names) for name in ("mass", "chance", "entropy")
        }
        fields_of_union["largest"] = wider(self.largest, self.modalities, names)
        if views:
            without = self.mass.new_empty(*self.mass.shape[:3], 0)
            view_mass = without if self.view_mass is None else self.view_mass
            view_chance = without[:, :, 0] if self.view_chance is None else self.view_chance
            fields_of_union["view_mass"] = wider(view_mass, self.views, views)
            fields_of_union["view_chance"] = wider(view_chance, self.views, views)
        return replace(self, modalities=names, views=views, **fields_of_union)


def _column(values: Float[Tensor, "*axes"] | Int[Tensor, "*axes"]) -> Any:
    """Numbers as a column of a table: in double precision, or whole."""
    return (values.double() if values.is_floating_point() else values).flatten().numpy()


def wider(
    values: Float[Tensor, "*axes own"], present: tuple[str, ...], names: tuple[str, ...]
) -> Float[Tensor, "*axes name"]:
    """Numbers of the classes that are present as numbers of all classes by name; NaN for the others."""
    wide = values.new_full((*values.shape[:-1], len(names)), math.nan)
    for index, name in enumerate(present):
        wide[..., names.index(name)] = values[..., index]
    return wide


def _the(name: str) -> str:
    """A class in a sentence."""
    return "what was generated" if name == "generated" else name if name in ("text", "audio") else f"the {name}"
