"""Attention flow: maximum flow from an output position to each input position, with attention weights as capacities.

Method:

1. Build a layered graph: positions between layers are nodes, A' = (1 - r) A + r I are edge capacities (as in
   `attention_rollout`).
2. For each input position j compute the maximum flow from the output position p to j, as if j were the only sink.
3. Divide by the flows of uniform attention (`uniform_attention`): lift[j] = F(p → j) / F_uniform(p → j).

Each position needs its own maximum flow through layers x pos² / 2 edges: 0.1 s for 12 layers of 64 positions, minutes
for 24 layers of 500, hours to days for thousands. Runs estimated to take longer than `minutes` are refused before they
start. `groups` merges positions and adds the capacities of parallel edges. Inside a group everything can then reach
everything, so a group's value is an upper bound on the exact flow into its positions (`benchmarks/flow.py` measures how
tight). Capacities and flows are fp64.

Paper: Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv 2005.00928.

When to use it: next to `attention_rollout`. Rollout divides mass among paths; flow sends as much as fits through all of
them together, so it is never smaller and decays less with depth. It bounds where information can have come from.

When not to use it: values, MLPs and the sign of contributions are ignored. Each sink gets the whole capacity, so the
flows of one row can sum to far more than 1 (`normalized` divides by their sum), and early positions of a deep causal
model get nearly 1 in any case: read the lift, which leaves the first position out. It is not an attribution.

Example:
    flow = analysis.attention_flow(cache, groups="modality", modality=inputs.modality)
    flow.to_dataframe()                       # one row per group
    views.attention_flow(flow, inputs=inputs)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.attention.cached_mixing import layer_range, read_fused, read_residual_weight
from lensplug.analysis.attention.flow_groups import flow_groups
from lensplug.analysis.attention.layered_graph import LayeredGraph
from lensplug.analysis.attention.left_out import LeftOut, first_is_meant, left_out
from lensplug.analysis.attention.resolve_groups import Merge
from lensplug.analysis.attention.uniform_attention import EvenLayer, beyond_order, even_layer, lift
from lensplug.analysis.protocols import needs
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import attended, n_layers, refuse_other_map
from lensplug.errors import LensplugError
from lensplug.positions.by_modality import Modality, modality_of
from lensplug.positions.groups import Groups
from lensplug.positions.indices import Position, resolve_position
from lensplug.positions.modality_map import ModalityMap
from lensplug.reductions.mixing import ROWS_AT_ONCE, HeadFusion, Heads, Mixing, ResidualWeight, keeps
from lensplug.validation.arguments import check_example, checked
from lensplug.validation.masks import Mask

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Flow(Result):
    """The maximum flow from one output position into each input position, or into each group of them."""

    label_columns = ("example", "row", "group", "label", "modality", "first", "last", "positions")
    main_number = "flow"
    example_depth = {"labels": 0, "modalities": 0}

    values: Float[Tensor, "example group"]
    """Raw, 0 to 1, in fp64; without `groups=` a group is a position. NaN for padding, and behind an example's last."""
    row: Int[Tensor, " example"]
    """The output position, from the left."""
    groups: Int[Tensor, "example pos"]
    """The group of each position; -1 for padding."""
    labels: tuple[tuple[str, ...], ...]
    """Name of each group."""
    modalities: tuple[tuple[str, ...], ...]
    """Modalities of each group, joined by "+" where there are several; "" where they were not given."""
    residual: ResidualWeight
    head_fusion: HeadFusion
    layers: tuple[int, ...]
    """The layers that it flows through, first to last."""
    provenance: Provenance
    uniform: Float[Tensor, "example group"] | None = None
    """The flows of attention that is spread evenly, NaN for the first position; None with `uniform=False`."""

    @property
    def lift(self) -> Float[Tensor, "example group"]:
        """`values` over `uniform`; NaN for the first position, if alone, and where nothing can come from.

        Raises:
            LensplugError: If the flows of uniform attention were not asked for.
        """
        if self.uniform is None:
            raise LensplugError("there is no flow of uniform attention: attention_flow(...) without uniform=False.")
        return lift(self.values, self.uniform, ~self.values.isnan())

    def beyond_order(self, example: int = 0) -> str:
        """How much of the flows and their lift position order alone explains, as text: the notes below figures.

        Raises:
            LensplugError: If there is no such example, or no flow of uniform attention.
        """
        check_example(example, len(self.values))
        lifted = self.lift[example]
        assert self.uniform is not None
        return beyond_order(self.values[example], self.uniform[example], lifted, "flow")

    @property
    def normalized(self) -> Float[Tensor, "example group"]:
        """The values of each example divided by their sum."""
        normalized: Tensor = self.values / self.values.nansum(dim=1, keepdim=True)
        return normalized

    @property
    def positions(self) -> Int[Tensor, "example group"]:
        """How many positions each group has."""
        is_member = (self.groups >= 0).long()
        return torch.zeros(self.values.shape, dtype=torch.long).scatter_add_(1, self.groups.clamp(min=0), is_member)

    @property
    def upper_bound(self) -> bool:
        """Whether positions were merged: values are then upper bounds on the flow into a group's positions together."""
        return bool((self.positions > 1).any())

    @checked
    def by_position(
        self, example: int = 0, *, raw: bool = False, normalized: bool = False, shared: bool = False
    ) -> dict[str, Float[Tensor, " pos"]]:
        """The value of each position's group, for overlays; NaN for padding.

        Args:
            example: Which example.
            raw: Use `values` instead of the lift, as for a result without lift.
            normalized: Use `normalized` instead of the lift.
            shared: Share a group's raw (or normalised) value out evenly among its positions, so that what is painted
                adds up to the groups' values. By default each position has the whole: flows do not add up, and the flow
                into a group bounds that into each of its positions, while a share would make large regions look dark.
        """
        check_example(example, len(self.values))
        raw = raw or shared or self.uniform is None
        values = (self.normalized if normalized else self.values if raw else self.lift)[example]
        if shared:
            values = values / self.positions[example]
        group_of_position = self.groups[example]
        return {
            f"into position {int(self.row[example])}": values[group_of_position.clamp(min=0)].masked_fill(
                group_of_position < 0, torch.nan
            )
        }

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example and group."""
        import pandas as pd

        normalized = self.normalized
        columns = {} if self.uniform is None else {"uniform": self.uniform, "lift": self.lift}
        table = [
            {
                "example": example,
                "row": int(self.row[example]),
                "group": group,
                "label": self.labels[example][group],
                "modality": self.modalities[example][group],
                "first": members[0],
                "last": members[-1],
                "positions": len(members),
                "flow": float(self.values[example, group]),
                "normalized": float(normalized[example, group]),
                **{name: float(column[example, group]) for name, column in columns.items()},
            }
            for example in range(len(self.values))
            for group, members in enumerate(Groups(self.groups[example], list(self.labels[example])).members)
            if members  # padding has a label and no position, where each position is a group
        ]
        return pd.DataFrame(table)


@needs("attn.hook_pattern")
@checked
def attention_flow(
    cache: ActivationCache,
    *,
    row: Position = -1,
    residual: ResidualWeight = 0.5,
    groups: Merge = None,
    head_fusion: HeadFusion = "mean",
    heads: Heads | None = None,
    discard: float = 0.0,
    exclude_first: bool = False,
    sinks: LeftOut = None,
    layers: tuple[int, int] | None = None,
    modality: Modality | None = None,
    attention_mask: Mask | None = None,
    minutes: float = 5.0,
    uniform: bool = True,
) -> Flow:
    """The maximum flow from an output position into each input position.

    Args:
        cache: An ActivationCache with `hook_pattern` of every layer (`attention_flow.needs`), or with the mean over
            heads (`lens.run_with_cache(..., keep="head_mean")`).
        row: The output position, or one for each example; negative ones count from the last that is not padding.
        residual: Weight of the identity, 0 to 1 (0.5 in the paper), or "measured". This and the options from
            `head_fusion` to `layers` are those of `attention_rollout`, which tells more of them.
        groups: None: no position is merged, and flows are exact. "modality": images are merged by view and region,
            videos by frame, sounds by time, as finely as makes at most 128 groups, each text or generated token stays
            alone. Or your own: a list of `views.group_positions(...)`, one for each example, or whole numbers from 0,
            `[pos]` or `[batch pos]`: equal numbers are merged. The row is always alone, and the result has the groups
            in the order of the prompt: `labels` and `to_dataframe()` say which is which.
        head_fusion: "mean", "max", "min" or "value_weighted".
        heads: Only these: heads of every layer, or pairs (layer, head).
        discard: The share of each row's weights, the smallest, that is left out.
        exclude_first: Leave out the weight on the first position that is not padding.
        sinks: Positions that are left out in its place, as in `attention_rollout`; alone, they have no lift.
        layers: The first and the last layer that it flows through; all by default.
        modality: `inputs.modality`, or the inputs, for `groups="modality"`, and to name modalities.
        attention_mask: For a padded cache that TransformerLens made alone; the lens's caches carry theirs.
        minutes: The longest that it may take, estimated from the number of edges.
        uniform: Find the flows of uniform attention too, for the lift: as long again.

    Raises:
        LensplugError: If something is missing in the cache, an option is out of its range, or it would take too long.
    """
    modality = None if modality is None else modality_of(modality)
    is_first = first_is_meant(sinks, exclude_first)
    mixing = Mixing(head_fusion, None if heads is None else tuple(heads), residual, discard, is_first)
    sinks = "first" if is_first else sinks
    chosen = layer_range(layers, n_layers(cache))
    graphs: list[LayeredGraph] = []
    even_graphs: list[LayeredGraph] = []
    for layer in reversed(chosen):
        fused = read_fused(cache, mixing, layer, needed_by="attention_flow").cpu()
        if not graphs:
            mask = _attended(cache, (fused.shape[0], fused.shape[2]), attention_mask, modality, row)
            index, first = resolve_position(row, mask, name="row"), mask.argmax(dim=1)
            is_left_out, words = left_out(sinks, mask)
            merged = flow_groups(groups, modality, mask, index)
            graphs, even_graphs = (
                [
                    LayeredGraph(
                        source=int(groups_of_example.of_position[row_position]), width=len(groups_of_example.names)
                    )
                    for groups_of_example, row_position in zip(merged, index, strict=True)
                ]
                for _ in range(2)
            )
        weight = read_residual_weight(cache, mixing, layer, needed_by="attention_flow")
        residual_weights = weight.double().cpu() if isinstance(weight, Tensor) else [weight] * len(fused)
        sinks_of_example = [None] * len(fused) if is_left_out is None else list(is_left_out)
        capacities = [
            _capacity(mixing, *each) for each in zip(fused, residual_weights, sinks_of_example, merged, strict=True)
        ]
        share = minutes / 2 if uniform else minutes
        _refuse_hours(graphs, capacities, layer - chosen[0] + 1, share, merging=groups is not None)
        for graph, capacity in zip(graphs, capacities, strict=True):
            graph.add(capacity)
        if uniform:
            attention = mixing.attention(fused.float(), is_left_out)
            residual_of = weight.cpu() if isinstance(weight, Tensor) else weight
            even = even_layer(cache, layer, attention, residual_of, mask, left_out=is_left_out)
            for example, (graph, groups_of_example) in enumerate(zip(even_graphs, merged, strict=True)):
                graph.add(_even_capacity(even, example, groups_of_example))
    flows = [
        _known(graph.max_flows(), groups_of_example) for graph, groups_of_example in zip(graphs, merged, strict=True)
    ]
    even_flows = None
    if uniform:
        uniform_flows = [
            _apart(
                _known(graph.max_flows(), groups_of_example),
                groups_of_example,
                int(row_position),
                even.receives[example],
            )
            for example, (graph, groups_of_example, row_position) in enumerate(
                zip(even_graphs, merged, first, strict=True)
            )
        ]
        even_flows = torch.nn.utils.rnn.pad_sequence(uniform_flows, batch_first=True, padding_value=torch.nan)
    convention = f"{mixing.words(words)}, layers {chosen[0]} to {chosen[-1]}, maximum flow {_into(groups)}"
    return Flow(
        values=torch.nn.utils.rnn.pad_sequence(flows, batch_first=True, padding_value=torch.nan),
        row=index,
        groups=torch.stack([groups_of_example.of_position for groups_of_example in merged]),
        labels=tuple(tuple(groups_of_example.names) for groups_of_example in merged),
        modalities=_modalities(merged, modality),
        residual=residual,
        head_fusion=head_fusion,
        layers=tuple(chosen),
        provenance=Provenance.of(cache, "attention_flow", convention),
        uniform=even_flows,
    )


def _even_capacity(even: EvenLayer, example: int, groups: Groups) -> Float[Tensor, "group group"]:
    """The mixture of one layer of uniform attention, the edges between two groups added up."""
    width, members = len(groups.names), (groups.of_position >= 0).nonzero()[:, 0]
    capacity = torch.zeros(width, width, dtype=torch.float64)
    for rows in torch.split(members, ROWS_AT_ONCE):
        residual_share = even.kept[example, rows]
        mixed = ((1 - residual_share)[:, None] * even.rows(example, rows)).T[members]
        merged = capacity.new_zeros(width, len(rows)).index_add_(0, groups.of_position[members], mixed)
        capacity.index_add_(0, groups.of_position[rows], merged.T)
        capacity.diagonal().index_add_(0, groups.of_position[rows], residual_share)
    return capacity


def _apart(
    flows: Float[Tensor, " group"], groups: Groups, first: int, receives: Bool[Tensor, " pos"]
) -> Float[Tensor, " group"]:
    """NaN for the first position's group where it is set apart and alone."""
    group = int(groups.of_position[first])
    is_single = int((groups.of_position == group).sum()) == 1
    return flows.index_fill(0, torch.tensor([group]), torch.nan) if is_single and not bool(receives[first]) else flows


def _attended(
    cache: ActivationCache,
    shape: tuple[int, int],
    attention_mask: Mask | None,
    modality: ModalityMap | None,
    row: Position,
) -> Int[Tensor, "batch pos"]:
    """Which positions are not padding: as given, else as the modality map or the cache says."""
    if modality is not None:
        refuse_other_map(cache, shape, modality)
    if attention_mask is None and modality is not None:
        attention_mask = modality.attention_mask
    return attended(cache, shape, attention_mask, torch.device("cpu"), positions=row)


def _capacity(
    mixing: Mixing,
    fused: Float[Tensor, "query key"],
    residual: float | Float[Tensor, " query"],
    left_out_positions: Bool[Tensor, " key"] | None,
    groups: Groups,
) -> Float[Tensor, "group group"]:
    """A' of one layer in fp64, the edges between two groups added up."""
    width = len(groups.names)
    capacity = torch.zeros(width, width, dtype=torch.float64)
    members = (groups.of_position >= 0).nonzero()[:, 0]
    is_left_out = None if left_out_positions is None else left_out_positions[None]
    for rows in torch.split(members, ROWS_AT_ONCE):  # thousands of rows in fp64 at once would be gigabytes
        attention = mixing.attention(fused[None, rows].double(), is_left_out)
        residual_share = keeps(attention, residual[None, rows] if isinstance(residual, Tensor) else residual)[0]
        mixed = ((1 - residual_share)[:, None] * attention[0]).T[members]
        merged = capacity.new_zeros(width, len(rows)).index_add_(0, groups.of_position[members], mixed)
        capacity.index_add_(0, groups.of_position[rows], merged.T)
        capacity.diagonal().index_add_(0, groups.of_position[rows], residual_share)
    return capacity


def _refuse_hours(
    graphs: Sequence[LayeredGraph],
    capacities: Sequence[Tensor],  # of each example [group group], its own number of groups
    layers: int,
    minutes: float,
    *,
    merging: bool,
) -> None:
    """Refuse what would take too long, if all layers that are to come are like this one."""
    foreseen = [graph.foresee(capacity, layers) for graph, capacity in zip(graphs, capacities, strict=True)]
    edges, sinks, seconds = (sum(column) for column in zip(*foreseen, strict=True))
    if seconds <= 60 * minutes:
        return
    capacity = "groups=, a tensor with the number of a group for each position"
    merge = f"fewer groups ({capacity})" if merging else f"groups='modality', modality=inputs.modality (or {capacity})"
    raise LensplugError(
        f"attention_flow would need {sinks:,} maximum flows through {edges:,} edges, about {seconds / 60:,.0f} minutes,"
        f" and may take {minutes:g}: merge positions with {merge}, or allow minutes={math.ceil(seconds / 60)}."
    )


def _into(groups: Merge) -> str:
    """For a result's provenance."""
    if groups is None:
        return "into each position alone, exact"
    by = "by modality" if isinstance(groups, str) else "as given"
    return f"into groups of positions {by}, an upper bound on the exact flow into a group's positions together"


def _known(flows: Float[Tensor, " group"], groups: Groups) -> Float[Tensor, " group"]:
    """NaN where a group has no position."""
    return flows.masked_fill(torch.tensor([not members for members in groups.members]), torch.nan)


def _modalities(merged: Sequence[Groups], modality: ModalityMap | None) -> tuple[tuple[str, ...], ...]:
    """What the positions of each group are."""
    if modality is None:
        return tuple(("",) * len(groups_of_example.names) for groups_of_example in merged)
    return tuple(
        tuple("+".join(dict.fromkeys(names[position] for position in members)) for members in groups_of_example.members)
        for groups_of_example, names in zip(merged, modality.position_names, strict=True)
    )
