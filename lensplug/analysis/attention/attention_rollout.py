"""Attention rollout: how attention mixes positions across layers.

Method:

1. Fuse the heads of each layer (mean, max, min or value-weighted) to A_l, `[query key]`.
2. Add the residual stream: A'_l = (1 - r) A_l + r I, with r = 0.5 in the paper, or measured from the streams.
3. Multiply: R = A'_last ⋯ A'_first. R[p, j] is the share of input position j in output position p, if attention were
   all that happens. Rows sum to 1, and a causal model stays causal.
4. Divide by the same product for uniform attention (`uniform_attention`): lift[p, j] = R[p, j] / U[p, j].

Why lift: products of causal attention drift towards early positions whatever was attended to, and in trained models the
first position, the attention sink, takes nearly all. Figures therefore show the lift; the first position has none.

Only the requested rows are computed, from the last layer down as vectors: one row costs layers x pos², not pos³; all in
fp32. Patterns of thousands of positions need not be cached: `lens.run_with_cache(inputs, keep="rollout")`.

Paper: Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv 2005.00928.

When to use it: as a baseline for where information can have come from.

When not to use it: values, MLPs and the sign of contributions are ignored, so it is not an attribution. If the lift is
itself explained by position order, the figure's notes say so; use `gradient_rollout` then.

Example:
    rollout = analysis.attention_rollout(cache, rows=-1)
    rollout.values[0, 0]                      # [pos], sums to 1
    rollout.lift[0, 0]                        # [pos], 1 = as from uniform attention
    views.image_overlay(rollout, inputs)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.attention.cached_mixing import layer_range, read_fused, read_residual_weight
from lensplug.analysis.attention.left_out import LeftOut, first_is_meant, left_out
from lensplug.analysis.attention.rollout_rows import chosen_rows, row_names, rows_table
from lensplug.analysis.attention.uniform_attention import EvenLayer, beyond_order, even_layer, lift, rolled_out
from lensplug.analysis.protocols import needs
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.cache.activation_cache import ActivationCache, known
from lensplug.cache.reading import attended, n_layers, read, read_kept
from lensplug.errors import LensplugError
from lensplug.positions.indices import Positions
from lensplug.reductions import names as hook_names
from lensplug.reductions.mixing import HeadFusion, Heads, Mixing, ResidualWeight, keeps
from lensplug.validation.arguments import check_example, checked
from lensplug.validation.masks import Mask

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Rollout(Result):
    """How much of each input position is in each chosen output position."""

    label_columns = ("example", "row", "pos")
    main_number = "value"

    values: Float[Tensor, "example row pos"]
    """Raw: fractions, a row sums to 1."""
    rows: Int[Tensor, "example row"]
    """The output positions, from the left."""
    residual: ResidualWeight
    """The weight of the identity in each layer, or "measured"."""
    head_fusion: HeadFusion
    provenance: Provenance
    layers: tuple[int, ...]
    """The layers that were multiplied, first to last."""
    even: tuple[EvenLayer, ...]
    """What `uniform` is computed from, one entry per layer."""
    by_layer: Float[Tensor, "example layer row pos"] | None = None
    """With `per_layer=True`, the rollout up to each layer, the last of which is `values`; else None."""

    @cached_property
    def uniform(self) -> Float[Tensor, "example row pos"]:
        """The same rollout of attention that is spread evenly, in fp64; on the first position is what is there."""
        return rolled_out(self.even, self.rows)[:, -1]

    @cached_property
    def lift(self) -> Float[Tensor, "example row pos"]:
        """`values` over `uniform`: 1 where order alone decides; NaN for the first, sinks left out, what is not seen."""
        return lift(self.values, self.uniform, self._shown)

    @cached_property
    def uniform_by_layer(self) -> Float[Tensor, "example layer row pos"]:
        """With `per_layer=True`, `uniform` up to each layer.

        Raises:
            LensplugError: If this rollout has no layers.
        """
        if self.by_layer is None:
            raise LensplugError("this rollout is of all layers: attention_rollout(..., per_layer=True) has each.")
        return rolled_out(self.even, self.rows, per_layer=True)

    @cached_property
    def lift_by_layer(self) -> Float[Tensor, "example layer row pos"]:
        """With `per_layer=True`, `by_layer` over `uniform_by_layer`."""
        uniform = self.uniform_by_layer
        assert self.by_layer is not None
        return lift(self.by_layer, uniform, self._shown[:, None])

    @property
    def _shown(self) -> Bool[Tensor, "example 1 pos"]:
        return self.even[0].receives[:, None]

    def beyond_order(self, example: int = 0, *, row: int = -1) -> str:
        """How much of a row and its lift position order alone explains, as text: the notes below figures.

        Raises:
            LensplugError: If there is no such example.
        """
        check_example(example, len(self.values))
        values, uniform, lifted = (map_[example, row].cpu() for map_ in (self.values, self.uniform, self.lift))
        return beyond_order(values, uniform, lifted, "share")

    @checked
    def by_position(self, example: int = 0, *, raw: bool = False) -> dict[str, Float[Tensor, " pos"]]:
        """Each output position's row, up to each layer if there are: for overlays.

        Args:
            example: Which example.
            raw: Use `values` instead of the lift.
        """
        check_example(example, len(self.values))
        names = row_names(self.rows[example])
        if self.by_layer is None:
            return dict(zip(names, (self.values if raw else self.lift)[example], strict=True))
        each = self.by_layer if raw else self.lift_by_layer
        return {
            f"{name}, layer {layer}": each[example, index, row]
            for row, name in enumerate(names)
            for index, layer in enumerate(self.layers)
        }

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example, output position and input position, and each layer if there are several."""
        if self.by_layer is None:
            table = rows_table(self.rows, self.values[:, None])
            table["uniform"], table["lift"] = self.uniform.flatten().numpy(), self.lift.flatten().numpy()
            return table
        table = rows_table(self.rows, self.by_layer)
        examples, _, rows, length = self.by_layer.shape
        layer = torch.tensor(self.layers).repeat_interleave(rows * length).repeat(examples)
        table.insert(1, "layer", layer.numpy())
        table["uniform"], table["lift"] = self.uniform_by_layer.flatten().numpy(), self.lift_by_layer.flatten().numpy()
        return table


@needs("attn.hook_pattern")
@checked
def attention_rollout(
    cache: ActivationCache,
    *,
    rows: Positions | None = None,
    residual: ResidualWeight = 0.5,
    head_fusion: HeadFusion = "mean",
    heads: Heads | None = None,
    discard: float = 0.0,
    exclude_first: bool = False,
    sinks: LeftOut = None,
    layers: tuple[int, int] | None = None,
    per_layer: bool = False,
    attention_mask: Mask | None = None,
) -> Rollout:
    """The product of the layers' attention, with the residual stream.

    Args:
        cache: An ActivationCache with `hook_pattern` of every layer (`attention_rollout.needs`), with the mean over
            heads (`lens.run_with_cache(..., keep="head_mean")`), or with the rollout itself (`keep="rollout"`).
        rows: Output positions; negative ones count from the last that is not padding. None: all.
        residual: Weight of the identity, 0 to 1 (0.5 in the paper, 0 for none), or "measured": in each row the share
            of the stream in the norms of the stream and of what attention adds (needs `hook_resid_pre` and
            `hook_attn_out`).
        head_fusion: "mean" over heads (the paper), "max" or "min", or "value_weighted": the norm of what the heads
            together bring from each position, values through W_O (Kobayashi et al. 2020, arXiv 2004.10102; needs
            `hook_v`). All are then normalised to rows that sum to 1.
        heads: Only these: heads of every layer, or pairs (layer, head), `heads=result.top("image", 3)`
            will do; a layer without any of them leaves everything in its place.
        discard: The share (0 to 1) of each row's weights, the smallest, that is set to 0 before a row is normalised;
            of equal weights at the edge none is.
        exclude_first: Leave out the weight on the first position that is not padding, where many heads rest, before
            rows are normalised. The lift leaves that position out in either case.
        sinks: Positions that are left out in its place: "first"; what `analysis.sinks` found; positions, or a mask
            `[batch pos]`. None: what `exclude_first` says. The lift leaves them out too.
        layers: The first and the last layer that are multiplied; all by default.
        per_layer: Also give the rollout up to each layer (`by_layer`): what enters the rows from the first of `layers`
            on. For chosen rows costs layers^2 x pos^2.
        attention_mask: For a padded cache that TransformerLens made alone; the lens's caches carry theirs.

    Raises:
        LensplugError: If something is missing in the cache, or an option is out of its range.
    """
    first = first_is_meant(sinks, exclude_first)
    mixing = Mixing(head_fusion, None if heads is None else tuple(heads), residual, discard, first)
    sinks = "first" if first else sinks
    chosen = layer_range(layers, n_layers(cache))
    product = read_kept(cache, hook_names.ROLLOUT)
    if product is not None and _is_of(cache, mixing, layers, per_layer, sinks):
        mask = attended(cache, (product.shape[0], product.shape[1]), attention_mask, product.device, positions=rows)
        index = chosen_rows(rows, mask)
        values, by_layer = product.gather(1, index[:, :, None].expand(-1, -1, product.shape[2])), None
        is_left_out, words = left_out(sinks, mask)
        even = _even_as_kept(cache, mask, is_left_out)
    else:
        index, up_to, even, words = _multiplied(cache, mixing, chosen, rows, attention_mask, per_layer, sinks)
        values, by_layer = up_to[:, -1], up_to.cpu() if per_layer else None
    convention = f"{mixing.words(words)}, layers {chosen[0]} to {chosen[-1]}"
    return Rollout(
        values=values.cpu(),
        rows=index.cpu(),
        residual=residual,
        head_fusion=head_fusion,
        provenance=Provenance.of(cache, "attention_rollout", convention),
        by_layer=by_layer,
        layers=tuple(chosen),
        even=even,
    )


def _even_as_kept(
    cache: ActivationCache, mask: Int[Tensor, "batch pos"], is_left_out: Bool[Tensor, "batch pos"] | None
) -> tuple[EvenLayer, ...]:
    """The baseline of a rollout that was multiplied up while the model ran."""
    row_parts = read(cache, hook_names.ROLLOUT_ROWS, needed_by="attention_rollout")
    return tuple(
        EvenLayer.of(cache, layer, row_parts[:, layer, :, 0], row_parts[:, layer, :, 1], mask, left_out=is_left_out)
        for layer in range(row_parts.shape[1])
    )


def _is_of(
    cache: ActivationCache, mixing: Mixing, layers: tuple[int, int] | None, per_layer: bool, sinks: LeftOut
) -> bool:
    """Whether the rollout that the cache holds is the one asked for.

    Raises:
        LensplugError: If it is not, and nothing is there to make that from.
    """
    cached_mixing = known(cache, "rollout_mixing")
    is_by_name = sinks is None or isinstance(sinks, str)
    if cached_mixing == mixing and layers is None and not per_layer and is_by_name:
        return True
    pattern = cache.cache_dict.get("blocks.0.attn.hook_pattern")
    has_whole_patterns = pattern is not None and pattern.shape[-1] == pattern.shape[-2]
    if has_whole_patterns or hook_names.head_mean(0) in cache.cache_dict:
        return False
    if not is_by_name:
        raise LensplugError(
            "the cache holds a rollout that was multiplied with those sinks in it: run with keep='head_mean', of which"
            " attention_rollout(..., sinks=...) makes one without them."
        )
    raise LensplugError(
        f"the cache holds the rollout of all layers with {cached_mixing.in_words}: for other options run with"
        " keep=[lensplug.reductions.RolloutProduct(Mixing(...))], for other layers or per_layer with keep='head_mean'."
    )


def _multiplied(
    cache: ActivationCache,
    mixing: Mixing,
    layers: range,
    rows: Positions | None,
    attention_mask: Mask | None,
    per_layer: bool,
    sinks: LeftOut,
) -> tuple[Int[Tensor, "batch row"], Float[Tensor, "batch layer row pos"], tuple[EvenLayer, ...], str]:
    """The chosen rows, their products up to each layer (or up to the last only), the layers of the baseline.

    And what was left out, in words.
    """
    index = values = None
    even: list[EvenLayer] = []
    for layer in reversed(layers):
        fused = read_fused(cache, mixing, layer, needed_by="attention_rollout")
        if index is None or values is None:
            batch, length = fused.shape[0], fused.shape[-1]
            mask = attended(cache, (batch, length), attention_mask, fused.device, positions=rows)
            index, (is_left_out, words) = chosen_rows(rows, mask), left_out(sinks, mask)
            one_hot = torch.nn.functional.one_hot(index, length).float()
            values = one_hot[:, :0]
        if per_layer or layer == layers[-1]:  # the rows of one more product begin here
            values = torch.cat([one_hot, values], dim=1)
        attention = mixing.attention(fused, is_left_out)
        residual = read_residual_weight(cache, mixing, layer, needed_by="attention_rollout")
        residual_share = keeps(attention, residual)[:, None]
        values = (values * (1 - residual_share)) @ attention + values * residual_share
        even.append(even_layer(cache, layer, attention, residual, mask, left_out=is_left_out))
    assert index is not None and values is not None
    return index, values.reshape(batch, -1, index.shape[1], length), tuple(reversed(even)), words
