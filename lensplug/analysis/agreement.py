"""Agreement of methods on one example: the rank correlation of their maps.

Method:

1. Each method gives every position a value (attention, rollout, flow, gradient rollout, logit lens).
2. Keep the positions to compare, without NaN.
3. Spearman's correlation of every pair: ρ = Pearson correlation of the two rankings, from -1 to 1, whatever the units
   of the maps.

When to use it: to see whether a conclusion depends on the choice of method.

When not to use it: agreement is not correctness; methods can be wrong together (`deletion_curve` tests a map against
the model). Over all positions of a prompt the attention sink and text tokens dominate: pass `positions` to compare
within the image or sound. Few positions give large correlations by chance.

Example:
    rollout = analysis.attention_rollout(cache, rows=-1)
    attention = analysis.attention_from(cache, queries=-1).by_position()["layer 1"]
    analysis.agreement({"rollout": rollout, "attention": attention}, positions="image", modality=inputs)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result, one_row
from lensplug.errors import LensplugError
from lensplug.positions.by_modality import Modality, Where, mask_at, modality_of, named
from lensplug.validation.arguments import check_example, checked
from lensplug.validation.masks import as_mask

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Agreement(Result):
    """Spearman's rank correlation of every two methods."""

    label_columns = ("method", "other")
    main_number = "rank_correlation"

    methods: tuple[str, ...]
    rank_correlation: Float[Tensor, "method method"]
    """-1 to 1; NaN where a method gives every position the same value."""
    count: int
    """Number of positions that were ranked."""
    provenance: Provenance

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each pair."""
        import pandas as pd

        return pd.DataFrame(
            {"method": method, "other": other_method, "rank_correlation": float(self.rank_correlation[i, j])}
            for i, method in enumerate(self.methods)
            for j, other_method in enumerate(self.methods)
            if i < j
        )


@checked
def agreement(
    results: Mapping[str, Result | Float[Tensor, " pos"]],
    *,
    example: int = 0,
    positions: Where | None = None,
    modality: Modality | None = None,
) -> Agreement:
    """Rank correlations between maps of the same example.

    Args:
        results: Name -> a value for each position: a tensor, or a result with one map (a rollout of one row, received
            attention); one with several maps says which there are.
        example: Which example of the results.
        positions: Compare at these only, "image" or another modality, or a mask `[pos]`; positions that a method gives
            NaN are left out.
        modality: `inputs.modality`, or the inputs, where `positions` is a modality.

    Raises:
        LensplugError: If there are fewer than two methods, their lengths differ, or fewer than three positions are
            left.
    """
    if len(results) < 2:
        raise LensplugError(f"agreement compares at least two methods, got {list(results)}.")
    maps = {name: _map(name, result, example) for name, result in results.items()}
    lengths = {name: len(values) for name, values in maps.items()}
    if len(set(lengths.values())) > 1:
        raise LensplugError(f"the methods have different numbers of positions: {lengths}.")
    values = torch.stack([position_values.detach().cpu().double() for position_values in maps.values()])
    ranked = ~values.isnan().any(dim=0)
    if positions is not None:
        ranked &= _chosen(positions, modality, example, len(ranked))
    if int(ranked.sum()) < 3:
        raise LensplugError(f"{int(ranked.sum())} positions are left to rank, expected at least three.")
    import pandas as pd

    correlation = pd.DataFrame(values[:, ranked].T.numpy()).corr(method="spearman").to_numpy()
    names = named(positions)
    where = "all positions" if positions is None else f"{'chosen' if names is None else ' and '.join(names)} positions"
    convention = f"Spearman's rank correlation over {int(ranked.sum())} of {where}"
    return Agreement(
        methods=tuple(maps),
        rank_correlation=torch.tensor(correlation, dtype=torch.float32),
        count=int(ranked.sum()),
        provenance=_made([result.provenance for result in results.values() if isinstance(result, Result)], convention),
    )


def _chosen(positions: Where, modality: Modality | None, example: int, length: int) -> Bool[Tensor, " pos"]:
    if named(positions) is None:
        mask: Tensor = as_mask(positions, (length,), "positions", against="the maps have")
        return mask.cpu()
    if modality is None:
        raise LensplugError(f"positions={positions!r} needs to know which position is what: give modality=inputs.")
    every = modality_of(modality)
    check_example(example, len(every.labels))
    return mask_at(positions, every, (len(every.labels), length), "positions", against="the maps have")[example].cpu()


def _made(each: Sequence[Provenance], convention: str) -> Provenance:
    """Provenance of the methods' results; several models are all named."""
    merged = replace(Provenance.of_model(None, "agreement", convention), model="")
    model, dtype, weights = (
        " and ".join(filter(None, dict.fromkeys(getattr(provenance, name) for provenance in each)))
        for name in ("model", "dtype", "weights")
    )
    return replace(merged, model=model or "unknown", dtype=dtype, weights=weights)


def _map(name: str, result: Result | Tensor, example: int) -> Float[Tensor, " pos"]:
    if isinstance(result, Tensor):
        if result.ndim != 1:
            raise LensplugError(f"{name} has the shape {list(result.shape)}, expected one value for each position.")
        return result
    return one_row(result, example, name)
