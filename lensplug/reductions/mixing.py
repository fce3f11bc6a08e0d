"""How one layer mixes positions: its heads fused into one matrix, and the part that the residual stream keeps.

What `attention_rollout` multiplies and what `attention_flow` takes as capacities. A row of the mixture is
`(1 - r) a + r i`, with `a` a row of fused attention that sums to 1, `i` the position itself and `r` the residual's
weight. A row that attends to nothing (padding) keeps only itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.errors import LensplugError

HeadFusion = Literal["mean", "max", "min", "value_weighted"]
FUSIONS: tuple[HeadFusion, ...] = get_args(HeadFusion)
ResidualWeight = float | Literal["measured"]
ROWS_AT_ONCE = 256

Heads = Sequence[int | tuple[int, int] | tuple[int, int, float]]
"""Heads of every layer, or pairs (layer, head); what `top` gives, (layer, head, score), will do."""


@dataclass(frozen=True)
class Mixing:
    """The options by which attention becomes a mixture."""

    head_fusion: HeadFusion = "mean"
    """"mean", "max", "min", or "value_weighted": the norm of what the heads together bring from each key."""
    heads: Heads | None = None
    """Only these heads, of every layer, or pairs (layer, head), scores left out; None: all. A layer without any of them
    mixes nothing."""
    residual: ResidualWeight = 0.5
    """Weight of the identity, or "measured": by the norms of the stream and of what attention adds to it."""
    discard: float = 0.0
    """The share of a row's weights, the smallest, that is left out; of equal ones at the edge none is."""
    exclude_first: bool = False
    """Leave out what goes to the first position that is not padding, where many heads rest."""

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.head_fusion not in FUSIONS:
            raise LensplugError(
                f"head_fusion is {self.head_fusion!r}, expected one of {', '.join(map(repr, FUSIONS))}."
            )
        if self.residual != "measured" and (isinstance(self.residual, str) or not 0 <= self.residual <= 1):
            raise LensplugError(f"residual is {self.residual!r}, expected a weight from 0 to 1, or 'measured'.")
        if not 0 <= self.discard < 1:
            raise LensplugError(f"discard is {self.discard}, expected a share from 0 to below 1.")
        if self.heads is not None and not self.heads:
            raise LensplugError("heads is empty: give at least one head, or None for all.")
        if self.heads is not None:  # the score is no part of what is mixed, nor of how it is told
            object.__setattr__(self, "heads", tuple(_head(head) for head in self.heads))

    @property
    def needs_patterns(self) -> bool:
        """Whether single heads are needed, not their mean."""
        return self.head_fusion != "mean" or self.heads is not None

    @property
    def in_words(self) -> str:
        """For a result's provenance."""
        return self.words("first position left out" if self.exclude_first else "first position kept")

    def words(self, left_out: str) -> str:
        """The same, where an analysis says itself what is left out."""
        which = "all heads" if self.heads is None else f"heads {', '.join(map(str, self.heads))}"
        words = [f"{which} fused by {self.head_fusion}", f"residual weight {self.residual}", "rows sum to 1"]
        words += [f"smallest {self.discard:.0%} of each row left out"] if self.discard else []
        return ", ".join([*words, left_out])

    def check_heads(self, n_layers: int, n_heads: int) -> None:
        """Refuse heads that a model does not have.

        Raises:
            LensplugError: If there is one.
        """
        for entry in self.heads or ():
            layer, head = entry[:2] if isinstance(entry, tuple) else (0, entry)
            if not (0 <= layer < n_layers and 0 <= head < n_heads):
                raise LensplugError(
                    f"heads has {entry}, the model has layers 0 to {n_layers - 1} and heads 0 to {n_heads - 1}."
                )

    def heads_of(self, layer: int) -> list[int] | None:
        """The chosen heads of a layer; None for all."""
        if self.heads is None:
            return None
        pairs = [entry[:2] if isinstance(entry, tuple) else (layer, entry) for entry in self.heads]
        return sorted({head for layer_of_head, head in pairs if layer_of_head == layer})

    def fused(
        self,
        pattern: Float[Tensor, "batch head row key"],
        heads: list[int] | None = None,
        gram: Float[Tensor, "batch key head head"] | None = None,
    ) -> Float[Tensor, "batch row key"]:
        """The heads of some rows as one; zeros if there are no heads. `gram` is for "value_weighted"."""
        if heads is not None:
            if not heads:
                return pattern.new_zeros(pattern[:, 0].shape)
            pattern = pattern[:, heads]
            gram = None if gram is None else gram[:, :, heads][..., heads]
        if self.head_fusion == "value_weighted":
            assert gram is not None
            return torch.cat([_norms(rows, gram) for rows in torch.split(pattern, ROWS_AT_ONCE, dim=2)], dim=1)
        if self.head_fusion == "mean":
            return pattern.mean(dim=1)
        return pattern.amax(dim=1) if self.head_fusion == "max" else pattern.amin(dim=1)

    def attention(
        self, fused: Float[Tensor, "batch row key"], left_out: Bool[Tensor, "batch key"] | None
    ) -> Float[Tensor, "batch row key"]:
        """Rows of fused attention without what is left out; they sum to 1, or to 0 where nothing is left."""
        if left_out is not None:
            fused = fused.masked_fill(left_out.to(fused.device)[:, None], 0.0)
        if self.discard:
            fused = _without_smallest(fused, self.discard)
        total = fused.sum(dim=-1, keepdim=True)
        return torch.where(total > 0, fused / total, 0.0)


def _head(entry: Any) -> int | tuple[int, int]:
    """A head, or (layer, head), in Python's own numbers.

    Raises:
        LensplugError: If it is neither.
    """
    try:
        if not isinstance(entry, tuple | list):
            return index(entry)
        layer, head, *_score = entry
        if len(_score) < 2 and not isinstance(entry[0], bool):
            return index(layer), index(head)
    except (TypeError, ValueError):
        pass
    raise LensplugError(
        f"heads has {entry!r}, expected heads of every layer, heads=[3, 5], or (layer, head), as"
        ' analysis.head_specialization(...).top("image", 3) gives them: heads=result.top("image", 3).'
    )


def keeps(
    attention: Float[Tensor, "batch row key"], residual: float | Float[Tensor, "batch row"]
) -> Float[Tensor, "batch row"]:
    """How much of itself each row keeps: the residual's weight, all of it where it attends to nothing."""
    return torch.where(attention.any(dim=-1), residual, attention.new_ones(()))


def beside_first(attention: Float[Tensor, "batch row key"], first: Int[Tensor, " batch"]) -> Float[Tensor, "batch row"]:
    """The attention of each row that is not on the first position; summed, since 1 - first would cancel."""
    parts = [
        rows[:, :first_position].sum(dim=-1) + rows[:, first_position + 1 :].sum(dim=-1)
        for rows, first_position in zip(attention, first, strict=True)
    ]
    return torch.stack(parts)


def value_gram(
    v: Float[Tensor, "batch key kv_head d_head"], W_O: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "batch key head head"]:
    """The inner products of what the heads would bring from each key: value vectors through W_O, in fp32."""
    repeats = W_O.shape[0] // v.shape[2]
    blocks = []
    for part in torch.split(v.float(), ROWS_AT_ONCE, dim=1):
        contributions = torch.einsum("bkhd,hdm->bkhm", part.repeat_interleave(repeats, dim=2), W_O.float())
        blocks.append(contributions @ contributions.transpose(2, 3))
    return torch.cat(blocks, dim=1)


def measured_residual(
    stream: Float[Tensor, "batch pos d_model"], added: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos"]:
    """The stream's share of the norms of the stream and of what attention adds to it."""
    residual_norm, attention_norm = stream.float().norm(dim=-1), added.float().norm(dim=-1)
    share: Tensor = residual_norm / (residual_norm + attention_norm).clamp(min=torch.finfo(torch.float32).tiny)
    return share


def _norms(
    pattern: Float[Tensor, "batch head row key"], gram: Float[Tensor, "batch key head head"]
) -> Float[Tensor, "batch row key"]:
    """Kobayashi et al. 2020: the norm of the sum over heads of weight times transformed value, for each pair."""
    weights = pattern.permute(0, 3, 2, 1)  # [batch key row head]
    squares = ((weights @ gram) * weights).sum(dim=-1)
    return squares.clamp(min=0).sqrt().transpose(1, 2)


def _without_smallest(fused: Float[Tensor, "batch row key"], share: float) -> Float[Tensor, "batch row key"]:
    """The smallest positive weights of each row set to 0: a share of their number, rounded down."""
    ascending = fused.sort(dim=-1).values
    count = (fused > 0).sum(dim=-1, keepdim=True)
    edge = fused.shape[-1] - count + (count * share).floor().long()
    return fused.where(fused >= ascending.gather(-1, edge.clamp(max=fused.shape[-1] - 1)), 0.0)
