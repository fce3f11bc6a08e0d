"""Attention rollout: how attention mixes positions through all layers.

Idea (Abnar & Zuidema 2020, "Quantifying attention flow in transformers", arXiv 2005.00928): each layer
mixes positions by its attention, heads fused, and keeps part of each position through the residual
stream, A' = (1 - r) A + r I. The product A'_last ... A'_first says how much of each input position is in
each output position, if attention were all that happens. Rows sum to 1, and a causal model stays causal.

When not to use it: values, MLPs and the sign of contributions are not in it; deep products drift towards
the first positions. It is a baseline for where information can have come from, not an attribution.

Rows are carried from the last layer down as vectors, so one row costs layers x pos^2, not pos^3. All in
fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.reading import (
    Provenance,
    Result,
    attended,
    check_example,
    n_layers,
    needs,
    read_head_mean,
    read_pattern,
)
from lensplug.errors import LensplugError
from lensplug.positions import Positions, resolve_positions

if TYPE_CHECKING:
    import pandas as pd

FUSIONS = ("mean", "max", "min")


@dataclass(frozen=True, repr=False)
class Rollout(Result):
    """How much of each input position is in each chosen output position."""

    label_columns = ("example", "row", "pos")
    main_number = "value"

    values: Float[Tensor, "example row pos"]
    """Of `attention_rollout` fractions, a row sums to 1; of `gradient_rollout` R, whose rows do not."""
    rows: Int[Tensor, "example row"]
    """The output positions, from the left."""
    residual: float
    """The weight of the identity in each layer; 1 where the identity is added, not mixed (`gradient_rollout`)."""
    head_fusion: str
    provenance: Provenance
    relevance: Float[Tensor, "example row pos"] | None = None
    """Of `gradient_rollout`, `values` without the identity (R - I), which is what is painted; else None."""

    def by_position(self, example: int = 0) -> dict[str, Float[Tensor, " pos"]]:
        """Each output position's row, of relevance where there is some: for overlays."""
        check_example(example, len(self.values))
        shown = self.values if self.relevance is None else self.relevance
        return {f"into position {int(at)}": row for at, row in zip(self.rows[example], shown[example], strict=True)}

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example, output position and input position."""
        import pandas as pd

        # Whole columns at once: a row of Python objects for each of pos x pos values takes minutes.
        examples, rows, length = self.values.shape
        table = pd.DataFrame(
            {
                "example": torch.arange(examples).repeat_interleave(rows * length).numpy(),
                "row": self.rows.flatten().repeat_interleave(length).numpy(),
                "pos": torch.arange(length).repeat(examples * rows).numpy(),
                "value": self.values.flatten().double().numpy(),
            }
        )
        if self.relevance is not None:
            table["relevance"] = self.relevance.flatten().double().numpy()
        return table


@needs("attn.hook_pattern")
def attention_rollout(
    cache: Any,
    *,
    rows: Positions | None = None,
    residual: float = 0.5,
    head_fusion: str = "mean",
    attention_mask: Int[Tensor, "batch pos"] | None = None,
) -> Rollout:
    """The product of all layers' attention, with the residual stream.

    Args:
        cache: An ActivationCache with `hook_pattern` of every layer (`attention_rollout.needs`), or with the mean over
            heads (`lens.run_with_cache(..., head_mean=True)`).
        rows: Output positions; negative ones count from the last that is not padding. None: all.
        residual: Weight of the identity, 0 to 1 (0.5 in the paper).
        head_fusion: "mean" over heads (the paper), "max" or "min"; these two are then normalised to
            rows that sum to 1.
        attention_mask: For a padded cache that TransformerLens made alone; the lens's caches carry theirs.

    Raises:
        LensplugError: If a pattern is missing, or an option is out of its range.
    """
    if head_fusion not in FUSIONS:
        raise LensplugError(f"head_fusion is {head_fusion!r}, expected one of {', '.join(map(repr, FUSIONS))}.")
    if not 0 <= residual <= 1:
        raise LensplugError(f"residual is {residual}, expected a weight from 0 to 1.")
    layers = n_layers(cache)
    from_the_last = (_fused(cache, layer, head_fusion) for layer in reversed(range(layers)))
    last = next(from_the_last)
    batch, length, device = last.shape[0], last.shape[-1], last.device
    mask = attended(cache, (batch, length), attention_mask, device)
    index = chosen_rows(rows, mask)
    values = torch.nn.functional.one_hot(index, length).float()
    for fused in chain([last], from_the_last):
        values = _through(values, fused, residual)
    convention = f"heads fused by {head_fusion}, residual weight {residual}, rows sum to 1"
    provenance = Provenance.of(cache, "attention_rollout", convention)
    return Rollout(values.cpu(), index.cpu(), residual, head_fusion, provenance)


def _fused(cache: Any, layer: int, head_fusion: str) -> Float[Tensor, "batch query key"]:
    if head_fusion == "mean":
        return read_head_mean(cache, layer, needed_by="attention_rollout")
    pattern = read_pattern(cache, layer, needed_by="attention_rollout")
    return pattern.amax(dim=1) if head_fusion == "max" else pattern.amin(dim=1)


def chosen_rows(rows: Positions | None, attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch row"]:
    """The rows of a rollout as positions from the left; all for None.

    Raises:
        LensplugError: If there are none, or one is out of range or padding.
    """
    if rows is None:
        return torch.arange(attention_mask.shape[1], device=attention_mask.device).expand(len(attention_mask), -1)
    return resolve_positions(rows, attention_mask, name="rows")


def _through(
    values: Float[Tensor, "batch row pos"], fused: Float[Tensor, "batch query key"], residual: float
) -> Float[Tensor, "batch row key"]:
    """One layer down: values @ A', with A' = (1 - residual) A + residual I and rows of A' that sum to 1.

    Padding attends to nothing in TransformerLens; such a row keeps only itself.
    """
    total = fused.sum(dim=-1)
    scaled = values * torch.where(total > 0, (1 - residual) / total, 0.0)[:, None]
    keeps = torch.where(total > 0, residual, 1.0)[:, None]
    return scaled @ fused + values * keeps
