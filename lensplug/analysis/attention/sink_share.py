"""Sink share: of what a head gives to the image (or the sound), how much lies on sinks.

Method, for one query position q (by default the last, which predicts the answer) of each example, layer and head:

1. Sum the head's attention over the positions of each modality m: mass[m] = Σ_{k ∈ m} A[q, k].
2. Sum it over those among them that are sinks: on_sinks[m] = Σ_{k ∈ m ∩ sinks} A[q, k].
3. share[m] = on_sinks[m] / mass[m].
4. Chance is the fraction of the positions of m in sight that are sinks: the share under uniform attention.

Paper: Kang et al. 2025, "See What You Are Told: Visual Attention Sink in Large Multimodal Models", arXiv 2503.03321. It
calls heads image-centric that give at least 0.2 to the image, at most half of that to its sinks (`looking`).

When to use it: with `head_specialization`, before a head is said to look at the picture: mass on a few patches of
background, the same ones for every question, is no looking.

When not to use it: for heads that give the modality next to nothing, the share is a quotient of two small numbers:
read it with the mass.

Example:
    sinks = analysis.sinks(cache, inputs)
    share = analysis.sink_share(cache, inputs, sinks=sinks)
    share.to_dataframe().sort_values("share", ascending=False).head()
    share.looking("image")
    views.sink_share(share)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.attention.classes_in_sight import seen, seen_ahead
from lensplug.analysis.attention.heads_by_layer import standard_error
from lensplug.analysis.attention.left_out import LeftOut, left_out
from lensplug.analysis.over_examples import OverExamples, grid
from lensplug.analysis.protocols import needs
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import n_layers, pattern_shape, read_rows, refuse_other_map
from lensplug.errors import LensplugError
from lensplug.positions.by_modality import Modality, modality_of
from lensplug.positions.indices import Position, resolve_position
from lensplug.positions.modality_map import MODALITIES
from lensplug.validation.arguments import checked

if TYPE_CHECKING:
    import pandas as pd

NAMES = tuple(name for name in MODALITIES if name != "pad")


@dataclass(frozen=True, repr=False)
class SinkShare(Result):
    """The part of each head's mass on a modality that lies on sinks; NaN where it is not in sight."""

    label_columns = ("layer", "head", "modality")
    main_number = "share"
    standard_errors = {"share": "share_standard_error", "mass": "mass_standard_error"}

    mass: Float[Tensor, "example layer head modality"]
    """Fraction of the query's attention on the modality (0 to 1), sinks and all."""
    on_sinks: Float[Tensor, "example layer head modality"]
    """Fraction of the query's attention on sinks that are of the modality."""
    chance: Float[Tensor, "example modality"]
    """The share under uniform attention over the positions in sight."""
    sinks: Int[Tensor, "example modality"]
    """How many of the positions in sight are sinks."""
    query: Int[Tensor, " example"]
    """The query position of each example, from the left."""
    provenance: Provenance

    @property
    def share(self) -> Float[Tensor, "example layer head modality"]:
        """`on_sinks` over `mass`, 0 to 1; NaN where a head gives the modality nothing."""
        return self.on_sinks / self.mass.masked_fill(self.mass == 0, math.nan)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that are in sight in some example."""
        in_sight = (~self.chance.isnan()).any(dim=0).tolist()
        return tuple(name for name, is_so in zip(NAMES, in_sight, strict=True) if is_so)

    def of(self, modality: str) -> Float[Tensor, "example layer head"]:
        """The shares of one modality.

        Raises:
            LensplugError: If it is not in sight.
        """
        return self.share[..., self._index(modality)]

    @checked
    def looking(
        self, modality: str = "image", *, mass: float = 0.2, share: float = 0.5
    ) -> list[tuple[int, int, float]]:
        """The heads that look at a modality, and not at its sinks: (layer, head, mass), the largest first.

        Args:
            modality: Which.
            mass: The least mean mass.
            share: The largest mean share on sinks.

        Raises:
            LensplugError: If it is not in sight, or a limit is no share.
        """
        for name, limit in (("mass", mass), ("share", share)):
            if not 0 <= limit <= 1:
                raise LensplugError(f"{name} is {limit}, expected a share from 0 to 1.")
        index = self._index(modality)
        mean_mass, mean_share = (values.nanmean(dim=0)[..., index] for values in (self.mass, self.share))
        found = ((mean_mass >= mass) & (mean_share <= share)).nonzero().tolist()
        heads = [(layer, head, float(mean_mass[layer, head])) for layer, head in found]
        return sorted(heads, key=lambda entry: -entry[2])

    def over_examples(self) -> OverExamples:
        """Share and mass by layer, head and modality."""
        layers, heads = self.mass.shape[1:3]
        numbers = {"share": self.share.flatten(1), "mass": self.mass.flatten(1), "on_sinks": self.on_sinks.flatten(1)}
        return OverExamples(grid(layer=range(layers), head=range(heads), modality=NAMES), numbers)

    def by_example(self) -> dict[str, Float[Tensor, "example row"]]:
        """Share and mass of each example, in the rows of `to_dataframe`."""
        kept = [NAMES.index(name) for name in self.modalities]
        return {"share": self.share[..., kept].flatten(1), "mass": self.mass[..., kept].flatten(1)}

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each layer, head and modality in sight: means over the examples."""
        import pandas as pd

        names = self.modalities
        kept = [NAMES.index(name) for name in names]
        sizes = (*self.mass.shape[1:3], len(names))
        layer, head, index = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, sizes), indexing="ij"))
        numbers: dict[str, Tensor] = {
            **{name: getattr(self, name)[..., kept].nanmean(dim=0) for name in ("share", "mass", "on_sinks")},
            "chance": self.chance[:, kept].nanmean(dim=0)[None, None].expand(sizes),
            **{f"{name}_standard_error": standard_error(getattr(self, name)[..., kept]) for name in ("share", "mass")},
            "count": (~self.share[..., kept].isnan()).sum(dim=0),
        }
        columns: dict[str, Any] = {"layer": layer.numpy(), "head": head.numpy()}
        columns["modality"] = [names[at] for at in index.tolist()]
        return pd.DataFrame({**columns, **{name: values.flatten().numpy() for name, values in numbers.items()}})

    def _index(self, modality: str) -> int:
        if modality not in self.modalities:
            raise LensplugError(f"modality is {modality!r}, this result has {', '.join(self.modalities)}.")
        return NAMES.index(modality)


@needs("attn.hook_pattern")
@checked
def sink_share(cache: ActivationCache, modality: Modality, *, sinks: LeftOut, query: Position = -1) -> SinkShare:
    """How much of each head's attention to each modality lies on sinks.

    Args:
        cache: An ActivationCache with `hook_pattern` of every layer (`sink_share.needs`), of every query position or of
            this one.
        modality: Which position is what: `inputs.modality`, or the inputs.
        sinks: What `analysis.sinks` found; or "first", positions, or a mask `[batch pos]`.
        query: The position that looks, or one for each example; negative ones count from the last that is not padding.

    Raises:
        LensplugError: If a pattern is missing, the map does not fit the cache, the position is out of range, or sinks
            are none, or have another form.
    """
    if sinks is None:
        raise LensplugError("sinks is None, and without sinks no mass is on them: sinks=analysis.sinks(cache, inputs).")
    modality = modality_of(modality)
    mask = modality.attention_mask
    refuse_other_map(cache, pattern_shape(cache, needed_by="sink_share"), modality)
    is_sink, words = left_out(sinks, mask)
    assert is_sink is not None
    index = resolve_position(query, mask, name="query")
    in_sight = (seen(cache, mask, index) | seen_ahead(cache, modality, index)).cpu()
    member = torch.stack([modality.mask(name) for name in NAMES], dim=-1).cpu() & in_sight[..., None]
    sink_member = member & is_sink.cpu()[..., None]
    rows = read_rows(cache, range(n_layers(cache)), index[:, None], needed_by="sink_share")
    attention = torch.stack([row[:, :, 0].cpu() for row in rows], dim=1).double()  # [example layer head key]
    count, sink_count = member.sum(dim=1), sink_member.sum(dim=1)
    absent = (count == 0)[:, None, None]
    convention = f"fraction of the query's attention; {words.removesuffix(' left out')}; averages of each example's own"
    return SinkShare(
        mass=_sums(attention, member).masked_fill(absent, math.nan),
        on_sinks=_sums(attention, sink_member).masked_fill(absent, math.nan),
        chance=sink_count / count.double().masked_fill(count == 0, math.nan),
        sinks=sink_count,
        query=index.cpu(),
        provenance=Provenance.of(cache, "sink_share", convention, query=query),
    )


def _sums(
    attention: Float[Tensor, "example layer head key"], member: Bool[Tensor, "example key modality"]
) -> Float[Tensor, "example layer head modality"]:
    return attention @ member.double()[:, None]
