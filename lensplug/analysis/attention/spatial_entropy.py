"""Spatial entropy: whether a head looks at one place of the picture or at many, and which heads localise.

Method, for one query position of each example, each layer and head:

1. The attention to the picture's positions is a map S over its grid of cells: of the base view, or of the tiles.
2. B = max(S - mean(S), 0): what is above the map's mean.
3. C_1 .. C_n: the connected components of the cells where B > 0; neighbours share an edge or a corner.
4. p_i = Σ_{C_i} B / Σ B, and the entropy is H = -Σ p_i ln p_i, in nats: 0 for one place, ln n for n equal ones.

Heads that localise, by Kang et al. (`localising`): of the heads whose mean mass on the picture is at least that at the
elbow of the sorted masses (the point furthest from the chord between the smallest and the largest), those that are most
often, over the examples, among the ten with the lowest entropy.

Papers: Peruzzo et al. 2022, "Spatial Entropy as an Inductive Bias for Vision Transformers", arXiv 2206.04636; Kang et
al. 2025, "Your Large Vision-Language Model Only Needs A Few Attention Heads For Visual Grounding", arXiv 2503.06287.
The program of the latter takes cells where B > 0.001, of maps of 24 x 24 cells (`margin=0.001`), and lets p_i sum to
less than 1 then; here they sum to 1.

When to use it: to find heads whose maps point at an object that the question names: over many pictures and questions.

When not to use it: low entropy says that the map has one place, not that it is the right one. A head that rests on one
patch of background has entropy 0: give `sinks=`. One picture tells little; `combine` results of many.

Example:
    entropy = analysis.spatial_entropy(cache, inputs)
    entropy.entropy[0, 2]                     # of each head of layer 2
    analysis.SpatialEntropy.combine([entropy, entropy]).localising(k=3)
    views.spatial_entropy(entropy)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.attention.attention_from import AttentionFrom, attention_from
from lensplug.analysis.attention.heads_by_layer import standard_error
from lensplug.analysis.attention.left_out import LeftOut, left_out
from lensplug.analysis.attention.places_on_a_map import elbow, entropy_of_places
from lensplug.analysis.over_examples import OverExamples, grid
from lensplug.analysis.protocols import needs
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import pattern_shape, refuse_other_map
from lensplug.errors import LensplugError
from lensplug.positions.by_modality import Modality, modality_of
from lensplug.positions.indices import Position, resolve_position
from lensplug.positions.modality_map import ModalityMap
from lensplug.validation.arguments import at_least, checked

if TYPE_CHECKING:
    import pandas as pd

MapView = Literal["base", "tiles"]
"""The whole image, or its tiles, which together are one grid."""
NUMBERS = ("entropy", "mass", "components")


@dataclass(frozen=True, repr=False)
class SpatialEntropy(Result):
    """The spatial entropy of each head's map of one picture, from one query position of each example."""

    label_columns = ("layer", "head")
    main_number = "entropy"
    standard_errors = {"entropy": "entropy_standard_error", "mass": "mass_standard_error"}

    entropy: Float[Tensor, "example layer head"]
    """In nats, from 0; NaN where no cell is above the mean: an even map, or none."""
    mass: Float[Tensor, "example layer head"]
    """The fraction of the query's attention on the cells (0 to 1)."""
    components: Int[Tensor, "example layer head"]
    """How many connected components are above the mean."""
    query: Int[Tensor, " example"]
    """The query position of each example, from the left."""
    media_index: int
    view: MapView
    provenance: Provenance

    @property
    def elbow(self) -> float:
        """The mean mass at the elbow of the heads' sorted mean masses: a head below it looks elsewhere."""
        return elbow(self.mass.mean(dim=0).flatten().numpy())

    @checked
    def selected(self, *, among: int = 10) -> Float[Tensor, "layer head"]:
        """In which fraction of the examples a head is among those of the lowest entropy; 0 below the elbow.

        Of equal entropies the head with the larger mass is first.

        Args:
            among: How many heads of each example.
        """
        at_least(1, among=among)
        examples, layers, heads = self.entropy.shape
        is_candidate = (self.mass.mean(dim=0) >= self.elbow).flatten()
        counts = torch.zeros(layers * heads, dtype=torch.float64)
        for entropy, mass in zip(self.entropy.flatten(1).tolist(), self.mass.flatten(1).tolist(), strict=True):
            able = [index for index in is_candidate.nonzero()[:, 0].tolist() if not math.isnan(entropy[index])]
            order = sorted(able, key=lambda index: (round(entropy[index], 9), -mass[index]))
            counts[order[:among]] += 1
        return (counts / examples).reshape(layers, heads)

    @checked
    def localising(self, k: int = 3, *, among: int = 10) -> list[tuple[int, int, float]]:
        """The k heads that localise most often: (layer, head, fraction of the examples); fewer where fewer ever do.

        Of heads that do equally often, the one with the lower mean entropy is first.

        Args:
            k: How many.
            among: How many heads of each example count as localising in it.
        """
        at_least(1, k=k)
        often, mean = self.selected(among=among), self.entropy.nanmean(dim=0)
        found = [(layer, head, float(often[layer, head])) for layer, head in often.nonzero().tolist()]
        return sorted(found, key=lambda entry: (-entry[2], float(mean[entry[0], entry[1]])))[:k]

    def over_examples(self) -> OverExamples:
        """Entropy, mass and number of components by layer and head."""
        layers, heads = self.entropy.shape[1:]
        numbers: dict[str, Tensor] = {name: getattr(self, name).double().flatten(1) for name in NUMBERS}
        return OverExamples(grid(layer=range(layers), head=range(heads)), numbers)

    def by_example(self) -> dict[str, Float[Tensor, "example row"]]:
        """Entropy and mass of each example, in the rows of `to_dataframe`."""
        return {"entropy": self.entropy.flatten(1), "mass": self.mass.flatten(1)}

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each layer and head: means over the examples, and how often it localises."""
        import pandas as pd

        layers, heads = self.entropy.shape[1:]
        numbers: dict[str, Tensor] = {
            "entropy": self.entropy.nanmean(dim=0),
            "mass": self.mass.mean(dim=0),
            "components": self.components.double().mean(dim=0),
            "entropy_standard_error": standard_error(self.entropy),
            "mass_standard_error": standard_error(self.mass),
            "localises": self.selected(),
            "count": (~self.entropy.isnan()).sum(dim=0),
        }
        places = grid(layer=range(layers), head=range(heads))
        return pd.DataFrame({**places, **{name: values.flatten().numpy() for name, values in numbers.items()}})


@needs("attn.hook_pattern")
@checked
def spatial_entropy(
    attention: ActivationCache | AttentionFrom,
    modality: Modality,
    *,
    query: Position = -1,
    media_index: int = 0,
    view: MapView = "base",
    margin: float = 0.0,
    sinks: LeftOut = None,
) -> SpatialEntropy:
    """The spatial entropy of each layer's and head's attention to a picture.

    Args:
        attention: An ActivationCache with `hook_pattern` of every layer (`spatial_entropy.needs`), of every query
            position or of this one; or a result of `attention_from`.
        modality: Where the picture's positions are: `inputs.modality`, or the inputs.
        query: The position that looks, or one for each example; negative ones count from the last that is not padding.
            Of a result of `attention_from`: which of its queries, in the order asked for.
        media_index: Which picture of each example.
        view: "base", the picture as a whole, or "tiles".
        margin: How far above the mean a cell of a component is, in fractions of the attention.
        sinks: Positions that have no part in the map, as if the picture had a hole there; other attention is as it was:
            "first"; what `analysis.sinks` found; positions, or a mask `[batch pos]`.

    Raises:
        LensplugError: If a pattern is missing, the map does not fit the cache, or an example has no such picture, no
            such view of it, or none whose places are known.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise LensplugError(f"margin is {margin}, expected 0 or more.")
    modality = modality_of(modality)
    rows, queries = _rows(attention, modality, query)
    is_left_out, words = left_out(sinks, modality.attention_mask)
    measured: list[tuple[Tensor, ...]] = []
    for example, row in enumerate(rows):
        positions, at_row, at_column = _cells(modality, example, media_index, view)
        if is_left_out is not None:
            inside = ~is_left_out[example].cpu()[positions]
            positions, at_row, at_column = positions[inside], at_row[inside], at_column[inside]
        on_cells = row[..., positions].double()  # [layer head cell]
        size = (int(at_row.max()) + 1, int(at_column.max()) + 1) if len(positions) else (1, 1)
        maps = on_cells.new_full((*row.shape[:2], *size), math.nan)
        maps[..., at_row, at_column] = on_cells
        entropy, count = map(torch.from_numpy, entropy_of_places(maps.flatten(0, 1).numpy(), margin))
        measured.append((entropy.reshape(row.shape[:2]), on_cells.sum(dim=-1), count.reshape(row.shape[:2])))
    numbers = dict(zip(NUMBERS, map(torch.stack, zip(*measured, strict=True)), strict=True))
    convention = (
        f"connected components (8 neighbours) of the {view} view above the mean"
        + (f" by {margin:g}" if margin else "")
        + ("" if is_left_out is None else f"; {words}")
    )
    return SpatialEntropy(
        **numbers, query=queries, media_index=media_index, view=view, provenance=_made(attention, convention, query)
    )


def _rows(
    attention: ActivationCache | AttentionFrom, modality: ModalityMap, query: Position
) -> tuple[Float[Tensor, "example layer head key"], Int[Tensor, " example"]]:
    """The attention of one query of each example, and where it is."""
    if not isinstance(attention, AttentionFrom):
        mask = modality.attention_mask
        refuse_other_map(attention, pattern_shape(attention, needed_by="spatial_entropy"), modality)
        index = resolve_position(query, mask, name="query")
        attention = attention_from(attention, queries=index[:, None], attention_mask=mask)
        query = 0
    shape = (attention.values.shape[0], attention.values.shape[-1])
    if shape != tuple(modality.labels.shape):
        raise LensplugError(
            f"the modality map is {list(modality.labels.shape)}, the attention {list(shape)}: use the map of the inputs"
            " that were run."
        )
    count = attention.values.shape[3]
    if not isinstance(query, int) or not -count <= query < count:
        raise LensplugError(f"query is {query}, the result has {count}, counted from 0 in the order asked for.")
    return attention.values[:, :, :, query], attention.queries[:, query]


def _cells(
    modality: ModalityMap, example: int, media_index: int, view: MapView
) -> tuple[Int[Tensor, " cell"], Int[Tensor, " cell"], Int[Tensor, " cell"]]:
    """The positions of a picture's cells in one view, and the row and column of each."""
    places = modality.image_grid(media_index, example)
    if places is None:
        raise LensplugError(
            f"example {example} has no picture {media_index} whose places are known: spatial_entropy reads the maps of"
            " pictures that lens.prepare or lens.encode was given."
        )
    at_row, at_column = places.cells(view=view)
    is_cell = at_row >= 0
    if not bool(is_cell.any()):
        raise LensplugError(f"picture {media_index} of example {example} has no view {view!r}, but {places.views}.")
    return modality.image_positions(media_index, example).cpu()[is_cell], at_row[is_cell], at_column[is_cell]


def _made(attention: ActivationCache | AttentionFrom, convention: str, query: Position) -> Provenance:
    """How the result was made: of a cache, or of rows that were read before."""
    if isinstance(attention, AttentionFrom):
        of_rows = attention.provenance
        words = f"{convention}; {of_rows.convention}"
        return replace(of_rows, analysis="spatial_entropy", convention=words, query=str(query))
    return Provenance.of(attention, "spatial_entropy", convention, query=query)
