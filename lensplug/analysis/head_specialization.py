"""Which heads look at the image, and which at the words: attention mass by modality.

Idea: from one query position (by default the last, where the answer is written) the attention of each
head is summed over the positions of each modality. A prompt has many more image positions than words,
so a head that looks nowhere in particular puts most of its mass on the image; the mass is therefore read
against chance, the mass under uniform attention over the allowed positions. A ratio of 1 means "as if
blind", 3 "three times what its share of the positions explains".

When not to use it: mass is where a head looks, not what it moves. A first-position sink with small values
can hold most of the mass (`exclude_sink`); what a head writes is `ActivationCache.stack_head_results`.

    result = head_specialization(cache, inputs.modality, query=-1)
    result.top("image", k=10)
    HeadSpecialization.combine([result_1, result_2]).mean
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug import hook_names
from lensplug.analysis.reading import n_layers, needs, pattern_shape, read_kept, read_rows
from lensplug.analysis.result import Provenance, Result, refuse_other_making
from lensplug.errors import LensplugError
from lensplug.modality import MODALITIES, ModalityMap
from lensplug.positions import Position, resolve_position
from lensplug.reductions.modality_mass import PARTS, measure, parts

if TYPE_CHECKING:
    import pandas as pd

DOMINANT = 2 / 3
"""A head is named after a modality that has this share of its chance-corrected attention."""


@dataclass(frozen=True, repr=False)
class HeadSpecialization(Result):
    """Attention mass by layer, head and modality, from one query position of each example."""

    label_columns = ("layer", "head", "modality")
    main_number = "ratio"
    standard_errors = {"ratio": "standard_error"}

    mass: Float[Tensor, "example layer head modality"]
    """Fraction of attention mass on the modality (0 to 1); NaN where the example lacks it."""
    chance: Float[Tensor, "example layer modality"]
    """The mass under uniform attention over the positions that the layer allows."""
    entropy: Float[Tensor, "example layer head modality"]
    """Of the attention inside the modality, normalised there, in nats; 0 = one position, ln n = even."""
    largest: Float[Tensor, "example layer head modality"]
    """The largest weight on one position of the modality (0 to 1)."""
    modalities: tuple[str, ...]
    query: Int[Tensor, " example"]
    """The query position of each example, from the left."""
    provenance: Provenance

    @property
    def ratio(self) -> Float[Tensor, "example layer head modality"]:
        """Mass over chance: 1 = uniform attention."""
        total = self.mass.nansum(dim=-1, keepdim=True)
        return (self.mass / total / self.chance[:, :, None]).float()

    @property
    def count(self) -> Int[Tensor, " modality"]:
        """How many examples have the modality."""
        return (~self.mass[:, 0, 0].isnan()).sum(dim=0)

    @property
    def mean(self) -> Float[Tensor, "layer head modality"]:
        """Of `ratio`, over the examples that have the modality."""
        return self.ratio.nanmean(dim=0)

    @property
    def standard_error(self) -> Float[Tensor, "layer head modality"]:
        """Of `mean`: the sample standard deviation over the root of the count; NaN for fewer than two."""
        ratio = self.ratio
        # Counted here for each head: a head that rests wholly on a sink that is left out has no ratio.
        count = (~ratio.isnan()).sum(dim=0)
        squares = (ratio - ratio.nanmean(dim=0)).square().nansum(dim=0)
        return (squares / (count - 1).clamp(min=0) / count).sqrt().masked_fill(count < 2, math.nan)

    @property
    def labels(self) -> list[list[str]]:
        """For each layer and head: the modality with two thirds of its chance-corrected attention, or "mixed"."""
        share = self.mean.nan_to_num(0)
        share = share / share.sum(dim=-1, keepdim=True)
        best = share.max(dim=-1)
        return [
            [self.modalities[i] if v >= DOMINANT else "mixed" for v, i in zip(values, indices, strict=True)]
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def top(self, modality: str, k: int = 10) -> list[tuple[int, int, float]]:
        """The k heads with the largest mean ratio on a modality: (layer, head, ratio)."""
        scores = self.mean[..., self._index(modality)].nan_to_num(0)
        values, flat = scores.flatten().topk(min(k, scores.numel()))
        return [
            (i // scores.shape[1], i % scores.shape[1], v) for v, i in zip(values.tolist(), flat.tolist(), strict=True)
        ]

    @classmethod
    def combine(cls, results: Sequence[HeadSpecialization]) -> HeadSpecialization:
        """Several results of one model as one, example after example.

        Raises:
            LensplugError: If they are of different models or conventions, or there is none.
        """
        refuse_other_making(results)
        first = results[0]
        for other in results[1:]:
            if other.mass.shape[1:3] != first.mass.shape[1:3]:
                raise LensplugError(
                    f"results of {list(first.mass.shape[1:3])} and {list(other.mass.shape[1:3])} layers and heads"
                    " cannot be combined: give results of one model."
                )
        names = tuple(name for name in MODALITIES if any(name in result.modalities for result in results))
        spread = [result._with_modalities(names) for result in results]
        return replace(
            first,
            mass=torch.cat([result.mass for result in spread]),
            chance=torch.cat([result.chance for result in spread]),
            entropy=torch.cat([result.entropy for result in spread]),
            largest=torch.cat([result.largest for result in spread]),
            query=torch.cat([result.query for result in spread]),
            modalities=names,
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each layer, head and modality, with mean ratio, standard error, count and label."""
        import pandas as pd

        mass, entropy, largest = (value.nanmean(dim=0) for value in (self.mass, self.entropy, self.largest))
        mean, standard_error, count, labels = self.mean, self.standard_error, self.count, self.labels
        return pd.DataFrame(
            {
                "layer": layer,
                "head": head,
                "modality": name,
                "mass": float(mass[layer, head, index]),
                "ratio": float(mean[layer, head, index]),
                "standard_error": float(standard_error[layer, head, index]),
                "count": int(count[index]),
                "entropy_nats": float(entropy[layer, head, index]),
                "largest_weight": float(largest[layer, head, index]),
                "label": labels[layer][head],
            }
            for layer in range(mass.shape[0])
            for head in range(mass.shape[1])
            for index, name in enumerate(self.modalities)
        )

    def by_example(self) -> dict[str, Float[Tensor, "example row"]]:
        """The ratios of each example, in the rows of `to_dataframe`."""
        return {"ratio": self.ratio.flatten(1)}

    def _index(self, modality: str) -> int:
        if modality not in self.modalities:
            raise LensplugError(f"modality is {modality!r}, this result has {', '.join(self.modalities)}.")
        return self.modalities.index(modality)

    def _with_modalities(self, names: tuple[str, ...]) -> HeadSpecialization:
        def spread(value: Tensor) -> Tensor:
            wide = torch.full((*value.shape[:-1], len(names)), math.nan, dtype=value.dtype)
            for index, name in enumerate(self.modalities):
                wide[..., names.index(name)] = value[..., index]
            return wide

        return replace(
            self,
            mass=spread(self.mass),
            chance=spread(self.chance),
            entropy=spread(self.entropy),
            largest=spread(self.largest),
            modalities=names,
        )


@needs("attn.hook_pattern")
def head_specialization(
    cache: Any, modality: ModalityMap, *, query: Position = -1, exclude_sink: bool = False
) -> HeadSpecialization:
    """Attention mass from one query position onto each modality, by layer and head.

    Args:
        cache: An ActivationCache with `hook_pattern` of every layer (`head_specialization.needs`), of every query
            position or of this one, or what each query gives to each modality
            (`lens.run_with_cache(..., keep="modality_mass")`).
        modality: Which position is what (`inputs.modality`).
        query: The position that looks, or one for each example; negative ones count from the last that is not padding.
        exclude_sink: Leave out the first position that is not padding, where many heads rest, and read
            the rest of the row as if it were all.

    Raises:
        LensplugError: If a pattern is missing, the map does not fit the cache, or the position is out
            of range.
    """
    mask, shape = modality.attention_mask, pattern_shape(cache, needed_by="head_specialization")
    if shape != tuple(mask.shape):
        raise LensplugError(
            f"the modality map is {list(mask.shape)}, the cache {list(shape)}: use the map of the inputs that were run."
        )
    index = resolve_position(query, mask, name="query")
    ahead = _seen_ahead(cache, modality, index)
    seen = _seen(cache, mask, index) | ahead
    names = tuple(name for name in modality.names if bool((modality.mask(name) & seen).any()))
    member = parts(modality)
    layers = []
    for layer in range(n_layers(cache)):
        allowed = _allowed(cache, layer, mask, index) | ahead
        given = _given(cache, layer, index, member).cpu()
        count = (member & allowed[:, None]).sum(dim=-1).cpu()
        layers.append(_by_modality(given, count, modality, names, exclude_sink))
    mass, chance, entropy, largest = (torch.stack(values, dim=1) for values in zip(*layers, strict=True))
    convention = "fraction of the query's attention mass over chance (uniform over allowed positions)"
    if exclude_sink:
        convention += "; first position left out"
    provenance = Provenance.of(cache, "head_specialization", convention, query=query)
    return HeadSpecialization(mass, chance, entropy, largest, names, index.cpu(), provenance)


def _given(
    cache: Any, layer: int, index: Int[Tensor, " batch"], member: Bool[Tensor, "batch part pos"]
) -> Float[Tensor, "batch head part 3"]:
    """What the query gives to each part, as `modality_mass.measure` has it: as kept, or of its row of the pattern."""
    kept = read_kept(cache, hook_names.modality_mass(layer))
    if kept is None:
        row = read_rows(cache, layer, index[:, None], needed_by="head_specialization").double()
        return measure(row, member.to(row.device))[:, :, 0]
    if not torch.equal(cache.modality_parts.to(member.device), member):
        raise LensplugError("the cache's masses are of another modality map: use the map of the inputs that were run.")
    at = index.to(kept.device)[:, None, None, None, None].expand(-1, kept.shape[1], -1, *kept.shape[3:])
    given: Tensor = kept.gather(2, at)[:, :, 0].double()
    return given


def _by_modality(
    given: Float[Tensor, "example head part 3"],
    count: Int[Tensor, "example part"],
    modality: ModalityMap,
    names: tuple[str, ...],
    exclude_sink: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mass, chance, entropy and largest weight of one layer, in double precision.

    Chance is a quotient of counts, and so is the mass of a uniform row over the row's sum: in double
    precision their ratio rounds to exactly 1.
    """
    belongs = torch.stack([_parts_of(name, modality, exclude_sink) for name in names], dim=1).cpu()  # [example n part]
    within = given[:, :, None] * belongs[:, None, :, :, None]  # [example head modality part 3]
    mass, information = within[..., 0].sum(dim=-1), within[..., 1].sum(dim=-1)
    count = (count[:, None] * belongs).sum(dim=-1)
    absent = (count == 0)[:, None].expand(mass.shape)
    # The entropy of the shares p / m is log m minus the mean of log p.
    entropy = (mass.log() - information / mass).clamp(min=0)
    chance = count.double() / count.sum(dim=-1, keepdim=True)
    gone = torch.nan
    return (
        mass.masked_fill(absent, gone),
        chance.masked_fill(count == 0, gone),
        entropy.masked_fill(absent | (mass == 0), gone),
        within[..., 2].amax(dim=-1).masked_fill(absent, gone),
    )


def _parts_of(name: str, modality: ModalityMap, exclude_sink: bool) -> Bool[Tensor, "example part"]:
    """Which parts make up a modality: its own, and the first position where that belongs to it."""
    first = modality.attention_mask.argmax(dim=1, keepdim=True)
    made = torch.zeros(len(first), len(PARTS), dtype=torch.bool)
    made[:, PARTS.index(name)] = True
    if not exclude_sink:
        made[:, 0] = modality.mask(name).gather(1, first)[:, 0].cpu()
    return made


def _seen(cache: Any, mask: Int[Tensor, "batch pos"], index: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
    """The key positions that the model lets each query see: not padding, and not later."""
    cfg: Any = getattr(cache.model, "cfg", None)
    if getattr(cfg, "attention_dir", "causal") != "causal":
        return mask.bool()
    return mask.bool() & (torch.arange(mask.shape[1], device=mask.device) <= index[:, None])


def _seen_ahead(cache: Any, modality: ModalityMap, index: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
    """The positions of the query's own image, where a model lets an image see itself whole (Gemma 3)."""
    cfg: Any = getattr(cache.model, "cfg", None)
    ahead = torch.zeros_like(modality.attention_mask, dtype=torch.bool)
    for span in modality.spans:
        within = span.modality == getattr(cfg, "looks_ahead_within", None)
        if within and span.start <= int(index[span.example]) < span.stop:
            ahead[span.example, span.start : span.stop] = True
    return ahead


def _allowed(
    cache: Any, layer: int, mask: Int[Tensor, "batch pos"], index: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch pos"]:
    """The key positions that a layer lets each query see."""
    cfg: Any = getattr(cache.model, "cfg", None)
    positions = torch.arange(mask.shape[1], device=mask.device)
    allowed = _seen(cache, mask, index)
    if getattr(cfg, "use_local_attn", False) and cfg.attn_types[layer] == "local":
        allowed = allowed & (positions > index[:, None] - cfg.window_size)
    return allowed
