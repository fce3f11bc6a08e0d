"""Attention rows of chosen query positions, in every layer and head.

Method: a whole pattern has head x pos x pos weights per layer, gigabytes for a prompt of thousands of image tokens. A
question such as "what did the model attend to when it predicted *Red*?" needs the rows of a few queries.

1. Choose query positions q. The logits at position q predict the token at q + 1: for an answer token at position p, the
   query is p - 1.
2. Read A[layer, head, q, :], the softmax output, without averaging: `values` is `[example layer head query key]`.

Equation: A[l, h, q, k] = softmax_k(Q[l, h, q] · K[l, h, k] / sqrt(d_head) + mask); each row sums to 1.

When to use it: to see where one prediction attends, layer by layer, or as input of an overlay.

When not to use it: attention weights show where a head attends, not what it moves (Jain & Wallace 2019, "Attention is
not Explanation", arXiv 1902.10186). Across layers use `attention_rollout`; for a causal claim, `modality_ablation`,
`deletion_curve` or `activation_patching`.

Example:
    attention = analysis.attention_from(cache, queries=[-2, -1])
    attention.values[0, :, :, 1]                                  # [layer head key] of the last position
    views.image_overlay(attention.by_position(query=1), inputs)   # a slider over layers
    views.attention_by_layer(attention, row=1, inputs=inputs)     # layer x position
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.attention.left_out import LeftOut, left_out, without
from lensplug.analysis.protocols import needs
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import attended, n_layers, pattern_shape, read_rows
from lensplug.errors import LensplugError
from lensplug.positions.indices import Positions, resolve_positions
from lensplug.validation.arguments import check_example, checked
from lensplug.validation.masks import Mask

if TYPE_CHECKING:
    import pandas as pd

HeadOrMean = Literal["mean"] | int
""" "mean" over all heads, or one head."""


@dataclass(frozen=True, repr=False)
class AttentionFrom(Result):
    """Attention from a few query positions to every position, by layer and head."""

    label_columns = ("example", "layer", "head", "query", "key")
    main_number = "attention"

    values: Float[Tensor, "example layer head query key"]
    """Fractions of the query's attention (0 to 1); over the keys they sum to 1; 0 on sinks that are left out, and where
    nothing else is left."""
    queries: Int[Tensor, "example query"]
    """The query positions, from the left."""
    provenance: Provenance

    @checked
    def by_position(
        self, example: int = 0, *, query: int = 0, head: HeadOrMean = "mean"
    ) -> dict[str, Float[Tensor, " pos"]]:
        """One query's attention in each layer, under the names that overlays show.

        Args:
            example: Which example.
            query: Which of the queries, in the order in which they were asked for; negative ones from the end.
            head: "mean" over all heads, or one head.

        Raises:
            LensplugError: If there is no such query, example or head.
        """
        examples, _, heads, queries, _ = self.values.shape
        check_example(example, examples)
        if not -queries <= query < queries:
            raise LensplugError(f"query is {query}, the result has {queries}, counted from 0 in the order asked for.")
        if head != "mean" and (isinstance(head, str) or not -heads <= head < heads):
            raise LensplugError(f"head is {head!r}, expected 'mean' or a head from 0 to {heads - 1}.")
        chosen = self.values[example, :, :, query]
        rows = chosen.mean(dim=1) if isinstance(head, str) else chosen[:, head]
        return {f"layer {layer}": row for layer, row in enumerate(rows)}

    @property
    def shares(self) -> bool:
        """They are."""
        return True

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example, layer, head, query and key."""
        import pandas as pd

        # Whole columns at once: a row of Python objects for each value takes minutes for a real image.
        axes = torch.meshgrid(*(torch.arange(size) for size in self.values.shape), indexing="ij")
        example, layer, head, query, key = (axis.flatten() for axis in axes)
        return pd.DataFrame(
            {
                "example": example.numpy(),
                "layer": layer.numpy(),
                "head": head.numpy(),
                "query": self.queries[example, query].numpy(),
                "key": key.numpy(),
                "attention": self.values.flatten().double().numpy(),
            }
        )


@needs("attn.hook_pattern")
@checked
def attention_from(
    cache: ActivationCache,
    *,
    queries: Positions = -1,
    sinks: LeftOut = None,
    attention_mask: Mask | None = None,
) -> AttentionFrom:
    """The attention rows of a few queries.

    Args:
        cache: An ActivationCache with `hook_pattern` of every layer (`attention_from.needs`).
        queries: Positions that look, the same for every example or a tensor `[example query]`; negative ones
            count from the last position that is not padding.
        sinks: Leave out what the queries give to these positions, and read the rest of each row as if it were all:
            "first", the first that is not padding; what `analysis.sinks` found; positions, or a mask `[batch pos]`.
            None: nothing is left out.
        attention_mask: For a padded cache that TransformerLens made alone; the lens's caches carry theirs.

    Raises:
        LensplugError: If a pattern is missing, or a query is out of range or is padding.
    """
    shape = pattern_shape(cache, needed_by="attention_from")
    mask = attended(cache, shape, attention_mask, torch.device("cpu"), positions=queries)
    positions = resolve_positions(queries, mask, name="queries")
    is_left_out, words = left_out(sinks, mask)
    every_layer = read_rows(cache, range(n_layers(cache)), positions, needed_by="attention_from")
    layers = [without(rows.cpu(), is_left_out) for rows in every_layer]
    convention = "fraction of the query's attention, each head alone" + ("" if is_left_out is None else f"; {words}")
    return AttentionFrom(
        torch.stack(layers, dim=1), positions.cpu(), Provenance.of(cache, "attention_from", convention)
    )
