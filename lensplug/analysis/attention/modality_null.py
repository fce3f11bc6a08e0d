"""Modality null: would a head's mass on a modality be as large if the labels of positions meant nothing?

Method, for one query position q (by default the last) of each example, layer and head:

1. The positions k that q sees, but for the sinks, have a class c each (a modality): N positions, n_c of class c.
2. The mass is observed[c] = Σ_{k ∈ c} A[q, k], as `head_specialization` has it.
3. Labels are shuffled over these N positions `shuffles` times; attention stays where it is. One matrix product of
   rows of attention and shuffled labels gives the masses of all heads.
4. Over all N! shuffles the mean is null_mean[c] = n_c ā, where ā = Σ_k A[q, k] / N, and the variance null_sd[c]² =
   n_c (N - n_c) / (N - 1) · Σ_k (A[q, k] - ā)² / N: sums of n_c drawn without replacement. Both are exact, and so is
   z = (observed - null_mean) / null_sd.
5. p is the share of shuffles, the observed labels among them, whose mass is as far from null_mean, on either side.

Sinks keep their label: a head that rests on the first position would look specialized in whatever that is. Attention
that is nearly even has z = 0 and p = 1.

When to use it: to tell heads whose attention is arranged by modality from heads with a few large weights somewhere: for
those, null_sd is large, and a large mass is no surprise. z and p are to be read together: where a single position
has most of the weight, masses are far from normal, z is bounded, and p the better judge.

When not to use it: neighbouring positions have like weights in many heads, and modalities are blocks. A head that
looks at a window of positions differs from shuffled labels whatever the window holds: the null says that attention
follows the blocks, not that it does so for their content (swap the order of image and question for that). Nor is p
one of a data set: compare z over examples (`lensplug.statistics`), and correct for the number of heads.

Example:
    null = analysis.modality_null(cache, inputs.modality, query=-1, shuffles=200, seed=0)
    null.z[0].nan_to_num().flatten().topk(5)                    # of the first example
    null.to_dataframe().sort_values("z", ascending=False).head()
    views.modality_null(null)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.attention.classes_in_sight import (
    EVERY,
    SinkChoice,
    allowed_positions,
    heads_see_differently,
    parts_of_classes,
    seen_ahead,
    sink_positions,
)
from lensplug.analysis.attention.head_readings import CLASSES, SINK, wider
from lensplug.analysis.attention.heads_by_layer import standard_error
from lensplug.analysis.over_examples import OverExamples, grid
from lensplug.analysis.protocols import needs
from lensplug.analysis.provenance import Provenance, refuse_other_making
from lensplug.analysis.result import Result
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import n_layers, pattern_shape, read_rows, refuse_other_map
from lensplug.errors import LensplugError
from lensplug.positions.by_modality import Modality, modality_of
from lensplug.positions.indices import Position, resolve_position
from lensplug.reductions.modality_mass import parts
from lensplug.validation.arguments import at_least, checked

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = ("mass", "null_mean", "null_sd", "z", "p_value")
"""What is measured of each example, layer, head and modality."""
LABELS = tuple(name for name in CLASSES if name != SINK)
"""What is shuffled."""
NUMBERS_AT_ONCE = 2**21
"""So many shuffled labels are in memory: 16 MB in double precision."""
EVEN = 1e-12
"""A row is even if its squared differences from the mean are below this share of its squares: rounding of fp32."""
TIE = 1e-9
"""Masses are equal that differ by less than this share of the row: sums in another order."""


MOST_SHUFFLES = 1_000_000
"""Of the labels of an example."""


@dataclass(frozen=True, repr=False)
class ModalityNull(Result):
    """Attention on each modality from one query position, against shuffled labels; NaN where it is not in sight."""

    axis_labels = {"modality": ("modalities", LABELS)}
    label_columns = ("layer", "head", "modality")
    main_number = "z"
    standard_errors = {"mass": "mass_standard_error", "z": "z_standard_error"}

    mass: Float[Tensor, "example layer head modality"]
    """Fraction of the query's attention on the modality (0 to 1); what is missing to 1 is on the sinks."""
    null_mean: Float[Tensor, "example layer head modality"]
    """The mean mass over all shuffles."""
    null_sd: Float[Tensor, "example layer head modality"]
    """Its standard deviation over all shuffles."""
    z: Float[Tensor, "example layer head modality"]
    """How many standard deviations the mass is above the mean; 0 where all shuffles give the same."""
    p_value: Float[Tensor, "example layer head modality"]
    """Two-sided, at least 1 / (shuffles + 1)."""
    modalities: tuple[str, ...]
    query: Int[Tensor, " example"]
    """The query position of each example, from the left."""
    shuffles: int
    provenance: Provenance

    @classmethod
    @checked
    def combine(cls, results: Sequence[ModalityNull]) -> ModalityNull:
        """Results of one model combined along examples; a modality that a result lacks is not in sight there.

        Raises:
            LensplugError: If they have different models or conventions, or there are no results.
        """
        refuse_other_making(results)
        names = tuple(name for name in LABELS if any(name in result.modalities for result in results))
        return super().combine([result._widened(names) for result in results])

    def _widened(self, names: tuple[str, ...]) -> ModalityNull:
        """With modalities of other results, which are not in sight here."""
        numbers: dict[str, Any] = {name: wider(getattr(self, name), self.modalities, names) for name in NUMBERS}
        return replace(self, modalities=names, **numbers)

    def over_examples(self) -> OverExamples:
        """z, mass and p-value by layer, head and modality."""
        layers, heads = self.mass.shape[1:3]
        numbers: dict[str, Tensor] = {name: getattr(self, name).flatten(1) for name in ("z", "mass", "p_value")}
        return OverExamples(grid(layer=range(layers), head=range(heads), modality=self.modalities), numbers)

    def by_example(self) -> dict[str, Float[Tensor, "example row"]]:
        """Mass and z of each example, in the rows of `to_dataframe`."""
        return {"mass": self.mass.flatten(1), "z": self.z.flatten(1)}

    @checked
    def to_dataframe(self, *, per_example: bool = False) -> pd.DataFrame:
        """One row for each layer, head and modality: means over examples, and the share of examples with p <= 0.05.

        Args:
            per_example: One row for each example as well, with its p-value.
        """
        import pandas as pd

        sizes = self.mass.shape if per_example else self.mass.shape[1:]
        axes = [axis.flatten() for axis in torch.meshgrid(*map(torch.arange, sizes), indexing="ij")]
        columns: dict[str, Any] = dict(zip(("layer", "head"), (axis.numpy() for axis in axes[-3:]), strict=False))
        columns["modality"] = [self.modalities[index] for index in axes[-1].tolist()]
        if per_example:
            numbers = {name: getattr(self, name) for name in NUMBERS}
            columns = {"example": axes[0].numpy(), **columns, "query": self.query[axes[0]].numpy()}
        else:
            numbers = {name: getattr(self, name).nanmean(dim=0) for name in NUMBERS if name != "p_value"}
            is_low = (self.p_value <= 0.05).double().masked_fill(self.p_value.isnan(), torch.nan)
            numbers |= {f"{name}_standard_error": standard_error(getattr(self, name)) for name in ("mass", "z")}
            numbers |= {"share_p_below_0.05": is_low.nanmean(dim=0), "count": (~self.mass.isnan()).sum(dim=0)}
        return pd.DataFrame({**columns, **{name: value.flatten().numpy() for name, value in numbers.items()}})


@needs("attn.hook_pattern")
@checked
def modality_null(
    cache: ActivationCache,
    modality: Modality,
    *,
    query: Position = -1,
    sinks: SinkChoice = "first",
    shuffles: int = 200,
    seed: int = 0,
) -> ModalityNull:
    """Attention mass on each modality from one query position, against shuffled labels of positions.

    Args:
        cache: An ActivationCache with `hook_pattern` of every layer (`modality_null.needs`), of every query position or
            of this one.
        modality: Which position is what: `inputs.modality`, or the inputs.
        query: The position that looks, or one for each example; negative ones count from the last that is not padding.
        sinks: Which positions keep their label, as in `head_specialization`: "first", "special", what
            `analysis.sinks` found, positions, a mask, or None.
        shuffles: How many; p is at least 1 / (shuffles + 1).
        seed: Of the shuffles. Each example is shuffled from it anew: its numbers do not depend on those beside it.

    Raises:
        LensplugError: If a pattern is missing, the map does not fit the cache, the position is out of range, sinks have
            another form, or the query sees nothing but sinks.
    """
    at_least(1, shuffles=shuffles)
    if shuffles > MOST_SHUFFLES:
        raise LensplugError(
            f"shuffles is {shuffles:,}, expected at most {MOST_SHUFFLES:,}: a p-value of 0.05 is known to 0.0002"
            " then, and z needs none of them."
        )
    modality = modality_of(modality)
    mask = modality.attention_mask
    refuse_other_map(cache, pattern_shape(cache, needed_by="modality_null"), modality)
    sink_mask, sink_note = sink_positions(sinks, mask, False)
    index = resolve_position(query, mask, name="query")
    if cut_apart := heads_see_differently(cache, mask, index):
        raise LensplugError(
            f"a knockout cuts some heads of layer {cut_apart[0]} and not others, and labels are shuffled over what all"
            " heads of a layer see: cut all of its heads, or measure without the knockout."
        )
    allowed = allowed_positions(cache, mask, index, seen_ahead(cache, modality, index)).cpu()
    is_class = _positions_of_classes(modality, sinks, sink_mask)
    in_sight = (is_class & allowed.any(dim=1)[:, None]).any(dim=-1).any(dim=0).tolist()
    names = tuple(name for name, seen in zip(LABELS, in_sight, strict=True) if seen)
    if not names:
        raise LensplugError(f"from query {query} nothing but the sink is in sight: there are no labels to shuffle.")
    is_class = is_class[:, torch.tensor(in_sight)]
    layers = read_rows(cache, range(n_layers(cache)), index[:, None], needed_by="modality_null")
    rows = torch.stack([layer[:, :, 0].cpu() for layer in layers], dim=1).double()  # [example layer head key]
    examples = [
        _against_shuffles(*example, shuffles=shuffles, seed=seed)
        for example in zip(rows, is_class, allowed, strict=True)
    ]
    numbers = dict(zip(NUMBERS, map(torch.stack, zip(*examples, strict=True)), strict=True))
    convention = (
        f"fraction of the query's attention; {sink_note} and keep their label; the other labels in sight are shuffled;"
        " mean and sd over all shuffles, p two-sided"
    )
    options = {"shuffles": shuffles, "seed": seed}
    provenance = Provenance.of(cache, "modality_null", convention, query=query, options=options)
    return ModalityNull(**numbers, modalities=names, query=index.cpu(), shuffles=shuffles, provenance=provenance)


def _positions_of_classes(
    modality: Any, sinks: SinkChoice, sink_mask: Bool[Tensor, "batch pos"] | None
) -> Bool[Tensor, "batch label pos"]:
    """Which positions have which label; sinks and padding have none."""
    members = parts(modality, sink_mask).cpu()
    of_labels = parts_of_classes(modality, sinks)[:, [EVERY.index(name) for name in LABELS]]
    return (of_labels.double() @ members.double()) > 0


def _against_shuffles(
    rows: Float[Tensor, "layer head key"],
    is_class: Bool[Tensor, "modality key"],
    allowed: Bool[Tensor, "layer key"],
    *,
    shuffles: int,
    seed: int,
) -> tuple[Float[Tensor, "layer head modality"], ...]:
    """The numbers of one example; layers that see the same positions are shuffled together."""
    shape = (*rows.shape[:2], len(is_class))
    numbers = tuple(rows.new_full(shape, torch.nan) for _ in NUMBERS)
    sights, sight_of_layer = torch.unique(allowed, dim=0, return_inverse=True)
    for number, sight in enumerate(sights):
        layers = (sight_of_layer == number).nonzero()[:, 0]
        shuffled = (sight & is_class.any(dim=0)).nonzero()[:, 0]
        labels = is_class[:, shuffled]
        present = labels.any(dim=-1).nonzero()[:, 0]
        if len(present) == 0:
            continue
        row = rows[layers].flatten(0, 1)
        weights = row[:, shuffled] / row[:, sight].sum(dim=-1, keepdim=True)
        found = _null(weights, labels[present].T.double(), shuffles, seed)
        for target, value in zip(numbers, found, strict=True):
            target[layers[:, None], :, present] = value.reshape(len(layers), -1, len(present)).transpose(1, 2)
    return numbers


def _null(
    weights: Float[Tensor, "row key"], labels: Float[Tensor, "key modality"], shuffles: int, seed: int
) -> tuple[Float[Tensor, "row modality"], ...]:
    """Mass, mean, standard deviation, z and p."""
    n, count = len(labels), labels.sum(dim=0)
    mass, mean = weights @ labels, weights.mean(dim=-1, keepdim=True)
    null_mean = mean * count
    squares = ((weights - mean) ** 2).sum(dim=-1, keepdim=True)
    squares = squares * (squares > EVEN * (weights**2).sum(dim=-1, keepdim=True))
    null_sd = (count * (n - count) * squares / (n * max(n - 1, 1))).sqrt()
    distance = (mass - null_mean).abs() * (null_sd > 0)
    z = torch.where(null_sd > 0, (mass - null_mean) / null_sd, 0.0)
    as_far = torch.ones_like(mass)  # the labels as they are
    slack = TIE * weights.sum(dim=-1, keepdim=True)
    for block in _shuffled(labels, shuffles, seed):
        masses = (weights @ block.flatten(1)).reshape(len(weights), *block.shape[1:])  # [row shuffle modality]
        as_far += ((masses - null_mean[:, None]).abs() >= (distance - slack)[:, None]).sum(dim=1)
    return mass, null_mean, null_sd, z, as_far / (shuffles + 1)


def _shuffled(
    labels: Float[Tensor, "key modality"], shuffles: int, seed: int
) -> Iterator[Float[Tensor, "key shuffle modality"]]:
    """Labels in random order, as many shuffles at a time as memory may hold; the same whatever that is."""
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, NUMBERS_AT_ONCE // labels.numel())
    for start in range(0, shuffles, at_once):
        orders = [torch.randperm(len(labels), generator=generator) for _ in range(min(at_once, shuffles - start))]
        yield labels[torch.stack(orders, dim=1)]
