"""Knockouts of which each is that of one copy of a prompt, put in force together.

Method: what queries from some position on do not see changes nothing before that position, nor below the first layer
in which it is not seen. Each variant is so put beside others that begin at the same position; in a pass of many copies
of the prompt, each copy has the unseen keys of its own variant. Used by `EditedRuns.under_each`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.interventions.knockout import Knockout
from lensplug.interventions.places import RunPositions
from lensplug.patches.unseen_keys import UnseenKeys, knocked_out


@dataclass(frozen=True)
class Cut:
    """The unseen keys of one variant."""

    index: int
    """Of the variant."""
    by_layer: dict[int, list[UnseenKeys]]

    @cached_property
    def from_layer(self) -> int:
        """The first layer that it changes."""
        return min(self.by_layer)

    @cached_property
    def from_position(self) -> int:
        """The first position whose attention it changes."""
        return min(int(keys.queries.any(dim=0).nonzero()[0]) for each in self.by_layer.values() for keys in each)


def cuts_of(model: Any, inputs: MultimodalInput, variants: Sequence[Sequence[Knockout]]) -> list[Cut]:
    """The variants that change something, by where they begin.

    Args:
        model: The TransformerLens model.
        inputs: The prompt.
        variants: For each the knockouts that are in force together.

    Raises:
        LensplugError: If a knockout would change nothing, other than by having no layers.
    """
    cuts, places = [], RunPositions.of(inputs)
    for index, knockouts in enumerate(variants):
        by_layer: dict[int, list[UnseenKeys]] = {}
        for knockout in knockouts:
            for layer, keys in knockout.changes(model, places).unseen.items():
                by_layer.setdefault(layer, []).append(keys)
        if by_layer:
            cuts.append(Cut(index, by_layer))
    return sorted(cuts, key=lambda cut: (cut.from_position, cut.from_layer))


@contextmanager
def each_in_force(model: Any, cuts: Sequence[Cut], n_examples: int) -> Iterator[None]:
    """A scope in which copies of a prompt, each with so many examples, have the unseen keys of one cut each.

    Raises:
        LensplugError: If attention was not computed where one of them acts.
    """
    stacked = list(_stacked(cuts, n_examples))
    with ExitStack() as stack:
        for by_layer in stacked:
            stack.enter_context(knocked_out(model, by_layer))
        yield
    for by_layer in stacked:
        if idle := [layer for layer, keys in by_layer.items() if not keys.asked]:
            raise LensplugError(
                f"a knockout did not act in layer {idle[0]}: its attention was not computed where knockouts reach it."
            )


def _stacked(cuts: Sequence[Cut], n_examples: int) -> Iterator[dict[int, UnseenKeys]]:
    """The unseen keys of all copies, by layer; several, one after another, where heads or options differ."""
    alike: dict[Any, dict[int, list[tuple[int, UnseenKeys]]]] = {}
    for copy, cut in enumerate(cuts):
        for layer, each in cut.by_layer.items():
            for number, keys in enumerate(each):
                heads = None if keys.heads is None else tuple(keys.heads.tolist())
                alike.setdefault((number, heads, keys.own), {}).setdefault(layer, []).append((copy, keys))
    for by_layer in alike.values():
        yield {layer: _of_copies(some, len(cuts), n_examples) for layer, some in by_layer.items()}


def _of_copies(some: Sequence[tuple[int, UnseenKeys]], n_copies: int, n_examples: int) -> UnseenKeys:
    """What these copies do not see; the others see all."""
    first = some[0][1]
    copies = torch.tensor([copy for copy, _ in some], device=first.keys.device)

    def each(masks: Sequence[Tensor]) -> Bool[Tensor, "copied pos"]:
        chosen = torch.stack([mask.expand(n_examples, -1) for mask in masks])
        return chosen.new_zeros(n_copies, *chosen.shape[1:]).index_copy(0, copies, chosen).flatten(0, 1)

    queries, keys = each([unseen.queries for _, unseen in some]), each([unseen.keys for _, unseen in some])
    return UnseenKeys(queries, keys, first.heads, first.later_queries, first.later_keys, first.own)
