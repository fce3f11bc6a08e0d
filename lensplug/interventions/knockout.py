"""Attention knockout: some queries do not see some keys, in some layers and heads.

Method: the scores of the chosen keys are minus infinity for the chosen queries before softmax, which renormalises over
the keys that are left. It is part of the mask that attention is computed with, so that it runs at the speed of SDPA and
acts on every path: full patterns, chosen rows, the steps of an answer, backward passes.

Papers: Geva et al. 2023, "Dissecting Recall of Factual Associations", arXiv 2304.14767; Zhang et al. 2024,
"Cross-modal Information Flow in Multimodal Large Language Models", arXiv 2411.18620.

When to use it: to ask whether information passes from one place to another in these layers.

When not to use it: cutting one route says nothing of another; redundant routes hide each other, so that each alone can
be cut without an effect. What a position has read in earlier layers it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.interventions.edit import Changes
from lensplug.interventions.equality import EqualByValue
from lensplug.interventions.layers_and_heads import Heads, Layers, heads_of, stated
from lensplug.interventions.places import Place, Placed, RunPositions, in_words
from lensplug.patches.unseen_keys import UnseenKeys
from lensplug.validation.arguments import admitted


@dataclass(frozen=True, eq=False)
class Knockout(EqualByValue):
    """Queries at `to` do not see keys at `from_`.

    with lens.intervene(Knockout(from_="image", to="last", layers=range(2, 5))):
        lens.generate(inputs).text
    """

    from_: Place
    """What is not seen."""
    to: Place = "all"
    """Who does not see it."""
    layers: Layers = None
    heads: Heads = None
    """Query heads; None: all."""
    own: bool = False
    """Whether a position may be kept from itself too, where it is among both."""

    def __post_init__(self) -> None:
        """Raise if an option is of another type."""
        admitted(self.own, bool, "own")

    def __str__(self) -> str:
        """In words, for provenance."""
        places = [f"from_={in_words(self.from_)}", f"to={in_words(self.to)}"]
        parts = [*places, *stated(self.layers, self.heads), *(["own=True"] if self.own else [])]
        return f"Knockout({', '.join(parts)})"

    def changes(self, model: Any, positions: RunPositions) -> Changes:
        """What queries of each layer do not see in this run.

        Raises:
            LensplugError: If a place is not there, or no query at `to` is behind a key at `from_`.
        """
        keys, queries = positions.place(self.from_, "from_"), positions.place(self.to, "to")
        self._refuse_no_edge(keys, queries)
        n_heads = model.cfg.n_heads
        by_layer = heads_of(self.layers, self.heads, model.cfg.n_layers, n_heads)
        made: dict[tuple[int, ...] | None, UnseenKeys] = {}
        unseen = {}
        for layer, heads in by_layer.items():
            chosen = None if heads is None else tuple(heads)
            if chosen not in made:
                mask = None if heads is None else _one_hot(heads, n_heads).to(keys.mask.device)
                made[chosen] = UnseenKeys(queries.mask, keys.mask, mask, queries.later, keys.later, self.own)
            unseen[layer] = made[chosen].in_another_block()
        return Changes(unseen=unseen)

    def _refuse_no_edge(self, keys: Placed, queries: Placed) -> None:
        """Raise if an example has no query that would have seen one of the keys."""
        if queries.later:
            return
        earlier = keys.mask.long().cumsum(dim=1)
        if not self.own:
            earlier = earlier - keys.mask.long()
        blind = ~((earlier > 0) & queries.mask).any(dim=1)
        if bool(blind.any()):
            raise LensplugError(
                f"Knockout: in example {int(blind.nonzero()[0])} no position at to={in_words(self.to)} comes behind one"
                f" at from_={in_words(self.from_)}: the edit would change nothing."
            )


def _one_hot(heads: list[int], n_heads: int) -> Bool[Tensor, " head"]:
    mask = torch.zeros(n_heads, dtype=torch.bool)
    mask[heads] = True
    return mask
