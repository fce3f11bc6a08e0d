"""The attention matrix of one layer, for one head or a mean over heads, by position or by group of positions.

Method:

1. Take the pattern of one layer, `[head query key]`, and select a head or average over heads: A, `[query key]`.
2. Optionally merge positions into groups (words, image regions): sum over the keys of a group, average over its
   queries, so that rows still sum to 1.

Equation, for groups G (queries) and H (keys): P[G, H] = 1/|G| · Σ_{q ∈ G} Σ_{k ∈ H} A[q, k].

When to use it: for the standard view of attention, and the table behind it.

When not to use it: it shows one layer only and does not say what matters. The mean over heads hides heads that do
opposite things, and weight on the first token, separators and full stops is mostly an attention sink (Clark et al.
2019, "What Does BERT Look At?", arXiv 1906.04341; Xiao et al. 2023, arXiv 2309.17453). For what reaches a position
through all layers use `attention_rollout`, for one answer `gradient_rollout`.

Example:
    result = analysis.attention_matrix(cache, layer=1, head=0, groups="words")
    views.attention_matrix(result)
    result.to_dataframe().to_csv("attention.csv", index=False)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.attention.left_out import LeftOut, left_out, without
from lensplug.analysis.attention.single_layer import Head, read_layer
from lensplug.analysis.protocols import needs
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import attended, texts_of
from lensplug.errors import LensplugError
from lensplug.positions.groups import Groups
from lensplug.positions.words import join_pieces
from lensplug.validation.arguments import checked
from lensplug.validation.masks import Mask

if TYPE_CHECKING:
    import pandas as pd

GroupsOf = Literal["words"] | Groups | Sequence[Groups] | None
""" "words", or groups for each example; None for each position alone."""


@dataclass(frozen=True, repr=False)
class AttentionMatrix(Result):
    """Where each position, or each group of positions, of one layer looks."""

    label_columns = ("example", "query", "key", "query_text", "key_text")
    main_number = "attention"
    example_depth = {"texts": 0}

    values: Float[Tensor, "example query key"]
    """Fractions of the query's attention (0 to 1); over the keys they sum to 1; 0 on sinks that are left out. NaN for
    padding, and behind the last group of an example that has fewer than another."""
    texts: tuple[tuple[str, ...], ...]
    """Text of each position or group of an example; "" where it was not given."""
    layer: int
    head: str
    """ "mean", or the heads that were averaged, counted from 0."""
    grouped: bool
    """Whether `query` and `key` count groups, not positions."""
    provenance: Provenance

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example, query and key that is not padding."""
        import pandas as pd

        # Whole columns at once: a row of Python objects for each of pos x pos values takes minutes.
        example, query, key = (~self.values.isnan()).nonzero(as_tuple=True)
        first = torch.tensor([0, *map(len, self.texts)]).cumsum(0)[example]  # where its texts begin among all
        texts = np.array([text for row in self.texts for text in row], dtype=object)
        return pd.DataFrame(
            {
                "example": example.numpy(),
                "query": query.numpy(),
                "key": key.numpy(),
                "query_text": texts[(first + query).numpy()],
                "key_text": texts[(first + key).numpy()],
                "attention": self.values[example, query, key].double().numpy(),
            }
        )


@needs("attn.hook_pattern")
@checked
def attention_matrix(
    cache: ActivationCache,
    *,
    layer: int,
    head: Head = "mean",
    groups: GroupsOf = None,
    sinks: LeftOut = None,
    str_tokens: Sequence[Sequence[str]] | None = None,
    attention_mask: Mask | None = None,
) -> AttentionMatrix:
    """One layer's attention.

    Args:
        cache: An ActivationCache with the layer's `hook_pattern`, or its mean over heads
            (`lens.run_with_cache(..., keep="head_mean")`).
        layer: Which layer; negative ones count from the last.
        head: "mean" over all heads, one head, or several to average.
        groups: "words" to join the pieces of the tokens by their marks; or one `Groups` for each example, from
            `lensplug.join_pieces` (which takes a fast tokenizer's word ids) or `views.group_positions`.
        sinks: Leave out what queries give to these positions; rows of the rest sum to 1 again: "first", the first that
            is not padding; what `analysis.sinks` found; positions, or a mask `[batch pos]`. None: nothing is left out.
        str_tokens: To name positions, for a cache that has none: of TransformerLens alone, or made without `tokens`.
        attention_mask: For a padded cache that TransformerLens made alone; the lens's caches carry theirs.

    Raises:
        LensplugError: If the layer or a head is not there, or texts or groups do not fit the cache.
    """
    layer_attention = read_layer(cache, layer, head, needed_by="attention_matrix")
    attention = layer_attention.attention.cpu()
    batch, length = attention.shape[0], attention.shape[-1]
    mask = attended(cache, (batch, length), attention_mask, attention.device).bool()
    texts = texts_of(cache, str_tokens, (batch, length))
    is_left_out, words = left_out(sinks, mask.long())
    attention = without(attention, is_left_out)
    if groups is None:
        values = attention.masked_fill(~(mask[:, :, None] & mask[:, None]), torch.nan)
        form = "each position alone"
    else:
        chosen = [
            groups_of_example.only(is_real)
            for groups_of_example, is_real in zip(_groups_of(groups, texts), mask, strict=True)
        ]
        most = max(len(groups_of_example.names) for groups_of_example in chosen)
        values = torch.full((batch, most, most), torch.nan)
        for example, groups_of_example in enumerate(chosen):
            count = len(groups_of_example.names)
            values[example, :count, :count] = groups_of_example.pool(attention[example][None])[0]
        texts = tuple(tuple(groups_of_example.names) for groups_of_example in chosen)
        form = "grouped: sum over keys, mean over queries"
    convention = f"{layer_attention.in_words}, rows sum to 1, {form}{'' if is_left_out is None else f', {words}'}"
    provenance = Provenance.of(cache, "attention_matrix", convention)
    return AttentionMatrix(values, texts, layer_attention.layer, layer_attention.head, groups is not None, provenance)


def _groups_of(
    groups: Literal["words"] | Groups | Sequence[Groups], texts: tuple[tuple[str, ...], ...]
) -> Sequence[Groups]:
    """One for each example."""
    if isinstance(groups, str):
        if not any(map(any, texts)):
            raise LensplugError(
                "groups='words' joins tokens, and the cache has none: give str_tokens=, or make it with"
                " cache_from_attentions(..., tokens=...)."
            )
        return [join_pieces(row) for row in texts]
    each = [groups] if isinstance(groups, Groups) else list(groups)
    if len(each) != len(texts) or not all(
        len(groups_of_example.of_position) == len(texts[0]) for groups_of_example in each
    ):
        lengths = [len(groups_of_example.of_position) for groups_of_example in each]
        raise LensplugError(
            f"groups are of {lengths} positions, the cache is {[len(texts), len(texts[0])]}: give one Groups for each"
            " example, made from its tokens with padding included."
        )
    return each
