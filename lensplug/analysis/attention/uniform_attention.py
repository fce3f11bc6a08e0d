"""What a rollout would be if only the order of positions counted: the same rollout of attention that is spread evenly.

Idea: a product of causal attention favours what comes first whatever was attended to; of uniform attention alone the
first of 2,949 positions weighs 3.7e7 times the last. So a map is read against that baseline: each row keeps of itself
what it kept in the model, gives the first position what it gave there (where trained models rest, the attention sink;
nothing, where that is left out), and spreads the rest evenly over the other positions that it may see. The quotient of
the model's rollout and this one is its *lift*: 1 where nothing but order and the sink decide.

In attention that looks both ways the first position is one of all, and the baseline is plain uniform attention.

A row costs layers x pos: an even spread over what a row sees is, for each column, the sum over the rows that see it,
and these are neighbours. All in fp64, sums of positive numbers only: what is 1e-30 of the largest is still exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import looks_ahead_within
from lensplug.reductions.mixing import beside_first, keeps

ROWS_AT_ONCE = 256
TOO_SMALL = 1e-30
"""Beside a smaller baseline the model's own rollout, in fp32, has lost its digits."""


@dataclass(frozen=True)
class EvenLayer:
    """One layer of the baseline, on the CPU."""

    kept: Float[Tensor, "example row"]
    """How much of itself each row keeps."""
    others: Float[Tensor, "example row"]
    """Share of the weight on other positions that is not on the first; 1 where the first is not set apart."""
    start: Int[Tensor, "example pos"]
    """The first row that sees each position."""
    stop: Int[Tensor, "example pos"]
    """Behind the last row that sees it."""
    receives: Bool[Tensor, "example pos"]
    """Which positions a share is spread over: no padding, no sink that is left out, not the first if set apart."""
    first: Int[Tensor, " example"]

    @classmethod
    def of(
        cls,
        cache: ActivationCache,
        layer: int,
        kept: Float[Tensor, "example row"],
        off_first: Float[Tensor, "example row"],
        mask: Int[Tensor, "example pos"],
        *,
        left_out: Bool[Tensor, "example pos"] | None,
        ahead: Int[Tensor, "example pos"] | None = None,
    ) -> EvenLayer:
        """What one layer lets each position see, by the configuration of the cache's model.

        Args:
            cache: For its model.
            layer: Which layer.
            kept: How much of itself each row keeps.
            off_first: The share of each row that is not on the first position.
            mask: 1 where there is no padding.
            left_out: The positions that the rollout leaves out, if any.
            ahead: The last position that each row sees, where a model lets some look ahead (within an image).
        """
        cfg: Any = getattr(cache.model, "cfg", None)
        mask, off_first = mask.cpu().bool(), off_first.cpu().double()
        length = mask.shape[1]
        positions = torch.arange(length).expand(len(mask), -1)
        start, stop = positions, torch.full_like(positions, length)
        causal = getattr(cfg, "attention_dir", "causal") == "causal"
        if not causal:
            start = torch.zeros_like(positions)
        elif ahead is not None:
            ahead = torch.maximum(ahead.cpu(), positions).cummax(dim=1).values
            start = torch.searchsorted(ahead, positions.contiguous())
        if causal and getattr(cfg, "use_local_attn", False) and cfg.attn_types[layer] == "local":
            last_ahead = positions if ahead is None else ahead
            stop = torch.minimum(torch.maximum(positions + cfg.window_size, last_ahead + 1), stop)
        first = mask.int().argmax(dim=1)
        is_left_out = torch.zeros_like(mask) if left_out is None else left_out.cpu()
        is_apart = is_left_out.gather(1, first[:, None]) | causal  # [example 1]
        receives = mask & ~is_left_out & ~((positions == first[:, None]) & is_apart)
        others = torch.where(is_apart, off_first, 1.0)
        return cls(kept.cpu().double(), others, start, stop, receives, first)

    @property
    def share(self) -> Float[Tensor, "example row"]:
        """What one seen position gets of a row that keeps nothing."""
        change = torch.zeros(len(self.start), self.start.shape[1] + 1, dtype=torch.long)
        for boundary, sign in ((self.start, 1), (self.stop, -1)):
            change.scatter_add_(1, boundary, sign * self.receives.long())
        count = change.cumsum(dim=1)[:, :-1]
        return torch.where(count > 0, self.others / count.clamp(min=1), 0.0)

    def carried(self, values: Float[Tensor, "example row pos"]) -> Float[Tensor, "example row pos"]:
        """Rows one layer further down: `values @ mixture`."""
        moves = values * (1 - self.kept[:, None])
        spread = _sums(moves * self.share[:, None], self.start, self.stop) * self.receives[:, None]
        first_index = self.first[:, None, None].expand(-1, values.shape[1], 1)
        to_first = (moves * (1 - self.others[:, None])).sum(dim=-1, keepdim=True)
        return (values * self.kept[:, None] + spread).scatter_add_(2, first_index, to_first)

    def rows(self, example: int, rows: Int[Tensor, " row"]) -> Float[Tensor, "row pos"]:
        """The even attention of some rows, without what they keep."""
        row_positions = rows[:, None]
        is_visible = (
            (self.start[example] <= row_positions) & (row_positions < self.stop[example]) & self.receives[example]
        )
        attention = is_visible * self.share[example, rows][:, None]
        attention[:, self.first[example]] += 1 - self.others[example, rows]
        return attention


def even_layer(
    cache: ActivationCache,
    layer: int,
    attention: Float[Tensor, "example row pos"],
    residual: float | Float[Tensor, "example row"],
    mask: Int[Tensor, "example pos"],
    *,
    left_out: Bool[Tensor, "example pos"] | None,
) -> EvenLayer:
    """The baseline of one layer whose attention is at hand, normalised."""
    ahead = None
    if looks_ahead_within(cache) is not None:
        ahead = attention.shape[2] - 1 - (attention > 0).flip(2).int().argmax(dim=2)
        ahead = ahead * attention.any(dim=2)
    residual_share = keeps(attention, residual)
    off_first = beside_first(attention, mask.argmax(dim=1))
    return EvenLayer.of(cache, layer, residual_share, off_first, mask, left_out=left_out, ahead=ahead)


def rolled_out(
    layers: tuple[EvenLayer, ...], rows: Int[Tensor, "example row"], *, per_layer: bool = False
) -> Float[Tensor, "example layer row pos"]:
    """The baseline's rollout into some rows, up to the last of the layers, or up to each."""
    batches = []
    for some in torch.split(rows, ROWS_AT_ONCE, dim=1):
        one_hot = torch.nn.functional.one_hot(some, layers[0].kept.shape[1]).double()
        tops = range(len(layers)) if per_layer else [len(layers) - 1]
        batches.append(torch.stack([_down(layers[: top + 1], one_hot) for top in tops], dim=1))
    return torch.cat(batches, dim=2)


def lift(values: Float[Tensor, "*axes"], even: Float[Tensor, "*axes"], shown: Bool[Tensor, ...]) -> Tensor:
    """Values over the baseline's; NaN where none are shown, nothing can come from, or digits are lost."""
    is_defined = shown & (even > TOO_SMALL)
    return torch.where(is_defined, values.double() / even.where(is_defined, 1.0), torch.nan)


def beyond_order(
    values: Float[Tensor, " pos"], even: Float[Tensor, " pos"], lifted: Float[Tensor, " pos"], what: str
) -> str:
    """How much of a map and its lift position order alone explains, as text; a warning if it explains all."""
    is_defined = ~lifted.isnan()
    if int(is_defined.sum()) < 4:
        return f"too few positions to tell the lift of {what} from order"
    if float(even[is_defined].std()) == 0:  # attention that looks both ways knows no order
        raw_correlation = lift_correlation = float("nan")
    else:
        raw_correlation, lift_correlation = (
            _rank_correlation(map_[is_defined].double(), even[is_defined]) for map_ in (values, lifted)
        )
    low, high = lifted[is_defined].quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    notes = (
        []
        if raw_correlation != raw_correlation
        else [f"rank correlation with uniform attention: {what} {raw_correlation:+.2f}, lift {lift_correlation:+.2f}"]
    )
    if high - low < FLAT * high:
        notes.append("THE LIFT IS FLAT: nothing beyond uniform attention")
    elif abs(lift_correlation) > ORDERED:
        notes.append("THE LIFT STILL FOLLOWS POSITION ORDER: it says little about the content of the positions")
    return "; ".join(notes)


FLAT = 0.05
"""A lift whose middle 80 % differ by less, of the larger, is flat."""
ORDERED = 0.8
"""A lift that has a stronger rank correlation with the baseline orders positions, and not what is at them."""


def _rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's; NaN where one is constant."""
    import pandas as pd

    return float(pd.Series(first.numpy()).corr(pd.Series(second.numpy()), method="spearman"))


def _down(layers: tuple[EvenLayer, ...], values: Float[Tensor, "example row pos"]) -> Tensor:
    for layer in reversed(layers):
        values = layer.carried(values)
    return values


def _sums(
    values: Float[Tensor, "example row pos"], start: Int[Tensor, "example pos"], stop: Int[Tensor, "example pos"]
) -> Float[Tensor, "example row pos"]:
    """For each column the sum of the values from start to before stop, by adding alone.

    A difference of running sums would cancel: where a window holds 1e-12 of what is before it, no digit would be left.
    """
    length = values.shape[-1]
    if bool((stop == length).all()):  # every row from the start on
        index = start[:, None].clamp(max=length - 1).expand_as(values)
        return values.flip(-1).cumsum(dim=-1).flip(-1).gather(-1, index)
    total, size, level, remaining = torch.zeros_like(values), 1, values, stop - start
    while size <= int(remaining.max()):
        takes = (remaining & size) > 0
        index = start.clamp(max=length - 1)[:, None].expand_as(values)
        total += level.gather(-1, index) * takes[:, None]  # level: the sum of the `size` values from a position on
        start = start + size * takes
        level = level + torch.nn.functional.pad(level[..., size:], (0, min(size, length)))
        size *= 2
    return total
