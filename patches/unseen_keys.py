"""Attention knockout: keys that some queries of some heads of a block do not see.

Not a patch, but what every way of computing attention here asks: the full patterns of either engine, SDPA with rows,
SDPA without, one query behind a key-value cache. While a block has `UnseenKeys`, their scores are minus infinity for
these queries, and softmax itself renormalises over the keys that are left; a query that is left none writes zeros.

The positions are those of the prompt; while an answer is generated, its tokens come behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from lensplug.patches.modules import attention_in

_KEY = "_unseen_keys"
"""Under this name the attention of a block holds what its queries do not see."""


@dataclass(eq=False)
class UnseenKeys:
    """Some queries do not see some keys, in some heads."""

    queries: Bool[Tensor, "example pos"]
    """Of each example, or of one that is like all others."""
    keys: Bool[Tensor, "example pos"]
    heads: Bool[Tensor, " head"] | None = None
    """None: in all heads."""
    later_queries: bool = False
    """Whether the tokens behind the prompt are among the queries."""
    later_keys: bool = False
    own: bool = False
    """Whether a query is kept from its own key, too."""
    asked: bool = field(default=False, init=False)
    """Whether attention was computed with it."""
    _chosen: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False)

    def in_another_block(self) -> UnseenKeys:
        """The same, to be asked for itself; what is worked out once is shared."""
        copied = copy(self)
        copied.asked = False
        return copied

    def of_examples(self, examples: Int[Tensor, " example"]) -> UnseenKeys:
        """Of some of the examples."""
        queries, keys = (
            mask if len(mask) == 1 else mask[examples.to(mask.device)] for mask in (self.queries, self.keys)
        )
        return UnseenKeys(queries, keys, self.heads, self.later_queries, self.later_keys, self.own)

    def of_rows(self, rows: Int[Tensor, "rows_of row"], keys: int) -> Bool[Tensor, "example head row key"]:
        """What these queries, counted from the first position of all, do not see of the first `keys` keys.

        Axes of examples and heads that do not matter have one entry.
        """
        self.asked = True
        queries = self._extended(self.queries, self.later_queries, keys)  # no query is behind the last key
        of_query = queries.expand(max(len(queries), len(rows)), -1).gather(1, rows.expand(len(queries), -1))
        of_key = self._extended(self.keys, self.later_keys, keys)
        unseen = of_query[:, :, None] & of_key[:, None, :]
        if not self.own:
            unseen = unseen & (rows[:, :, None] != torch.arange(keys, device=rows.device))
        unseen = unseen[:, None]
        return unseen if self.heads is None else unseen & self.heads[:, None, None]

    def any_of(self, past: int, queries: int) -> Int[Tensor, " row"]:
        """The queries of this pass, counted from its first, that it is about in any example."""
        self.asked = True
        if (past, queries) not in self._chosen:  # the same in every block of a pass
            chosen = self._extended(self.queries, self.later_queries, past + queries)[:, past:].any(dim=0)
            self._chosen.clear()
            self._chosen[past, queries] = chosen.nonzero()[:, 0]
        return self._chosen[past, queries]

    @staticmethod
    def _extended(mask: Bool[Tensor, "example pos"], later: bool, length: int) -> Bool[Tensor, "example length"]:
        """A mask of the prompt, for as many positions."""
        behind = length - mask.shape[1]
        return mask[:, :length] if behind <= 0 else F.pad(mask, (0, behind), value=later)


def unseen_keys(attn: Any) -> tuple[UnseenKeys, ...]:
    """What queries of a block's attention do not see at present."""
    unseen: tuple[UnseenKeys, ...] = attn.__dict__.get(_KEY, ())
    return unseen


def hidden_from(
    unseen: Sequence[UnseenKeys], rows: Int[Tensor, "rows_of row"], keys: int
) -> Bool[Tensor, "example head row key"]:
    """What these queries, counted from the first position of all, do not see of the first `keys` keys, by any."""
    hidden = unseen[0].of_rows(rows, keys)
    for knockout in unseen[1:]:
        hidden = hidden | knockout.of_rows(rows, keys)
    return hidden


@contextmanager
def knocked_out(model: Any, by_layer: Mapping[int, UnseenKeys]) -> Iterator[None]:
    """A scope in which the blocks of these layers have unseen keys, besides those that they have already."""
    before = {layer: unseen_keys(attention_in(model, layer)) for layer in by_layer}

    def put_back() -> None:
        for layer, unseen in before.items():
            held = model.blocks[layer].attn.__dict__
            if unseen:
                held[_KEY] = unseen
            else:
                held.pop(_KEY, None)

    try:
        try:
            for layer, unseen in by_layer.items():
                model.blocks[layer].attn.__dict__[_KEY] = (*before[layer], unseen)
            yield
        finally:
            put_back()
    finally:
        put_back()  # an interrupt may have come in the midst of the first
