"""One prompt under many knockouts, at the cost of the positions that they reach.

Method: what queries from some position on do not see changes nothing before that position, in a causal model. So the
positions before the first query are run once, and every knockout computes those behind it alone, many in one pass:
in each block, each branch has the unseen keys of its own knockout. For "last", that is one position of each.

Where positions before a query can change (masks in which an image sees itself whole), and where hooks or other edits
would see such a pass, every knockout runs the whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lensplug import engines
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.interventions.in_force import edits_on
from lensplug.interventions.knockout import Knockout
from lensplug.interventions.places import RunPositions
from lensplug.patches.decoder_inputs import depend_on_others, of_positions
from lensplug.patches.unseen_keys import UnseenKeys, knocked_out

POSITIONS_AT_ONCE = 1024
"""Of all branches of a pass: enough to be fast, few enough to be small beside the prompt's own run."""
SCORES_AT_ONCE = 2**22
"""The entries of a mask, of queries and keys, that a pass may have."""

Read = Callable[[Tensor], Tensor]
"""Logits `[branch row d_vocab]` to what is kept of them, `[branch ...]`."""


@dataclass(frozen=True)
class _Cut:
    """The unseen keys of one variant."""

    index: int
    by_layer: dict[int, list[UnseenKeys]]

    @property
    def start(self) -> int:
        """The first position whose attention it changes."""
        return min(int(keys.queries.nonzero()[0, 1]) for each in self.by_layer.values() for keys in each)


def read_under(
    model: Any,
    engine: engines.EngineName,
    inputs: MultimodalInput,
    variants: Sequence[Sequence[Knockout]],
    rows: Int[Tensor, " row"],
    read: Read,
    done: Callable[[int], None],
) -> Tensor:
    """What is read of the logits of one prompt under each variant.

    Args:
        model: The TransformerLens model.
        engine: What made it.
        inputs: One example.
        variants: For each the knockouts that are in force together; none for the prompt as it is.
        rows: Positions, from the left, whose logits are read.
        read: What is kept of the logits.
        done: Called with how many variants a pass was of.

    Raises:
        LensplugError: If a knockout would change nothing.
    """
    cuts, uncut = [], []
    places = RunPositions.of(inputs)
    for index, knockouts in enumerate(variants):
        by_layer: dict[int, list[UnseenKeys]] = {}
        for knockout in knockouts:
            for layer, keys in knockout.changes(model, places).unseen.items():
                by_layer.setdefault(layer, []).append(keys)
        if by_layer:
            cuts.append(_Cut(index, by_layer))
        else:
            uncut.append(index)
    values: dict[int, Tensor] = {}
    runs = _Runs(model, engine, inputs, rows)
    for start, branches in runs.by_start(cuts):
        for some in branches:
            values.update(zip((cut.index for cut in some), read(runs.logits(start, some)), strict=True))
            done(len(some))
    if uncut:
        plain = read(runs.logits(min(int(rows.min()), runs.last_start), [None]))[0]
        values.update(dict.fromkeys(uncut, plain))
        done(len(uncut))
    return torch.stack([values[index] for index in range(len(variants))])


class _Runs:
    """The runs of one prompt."""

    def __init__(
        self, model: Any, engine: engines.EngineName, inputs: MultimodalInput, rows: Int[Tensor, " row"]
    ) -> None:
        self._model, self._engine, self._inputs, self._rows = model, engine, inputs, rows
        attended = inputs.attention_mask[0].nonzero()[:, 0]
        self._first, self._stop = int(attended[0]), int(attended[-1]) + 1
        self._branches: Any = None
        self.whole = self._must_be_whole()
        self.last_start = self._stop

    def _must_be_whole(self) -> bool:
        is_hooked = any(point.fwd_hooks for point in self._model.hook_dict.values())
        return depend_on_others(self._inputs.decoder_inputs) or is_hooked or bool(edits_on(self._model))

    def by_start(self, cuts: Sequence[_Cut]) -> Iterator[tuple[int, Iterator[Sequence[_Cut]]]]:
        """The cuts that share their first positions, as many at a time as a pass has room for."""
        first_row = int(self._rows.min())
        starts: dict[int, list[_Cut]] = {}
        for cut in cuts:
            starts.setdefault(0 if self.whole else min(cut.start, first_row), []).append(cut)
        for start, those in sorted(starts.items()):
            positions = self._stop - max(start, self._first)
            at_once = max(1, min(POSITIONS_AT_ONCE // positions, SCORES_AT_ONCE // (positions * self._stop)))
            self.last_start = start
            yield start, (those[index : index + at_once] for index in range(0, len(those), at_once))

    def logits(self, start: int, cuts: Sequence[_Cut | None]) -> Tensor:
        """Logits `[branch row d_vocab]` under these cuts."""
        device = self._inputs.embeds.device
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            if self.whole:
                rows = self._rows.expand(len(cuts), -1)
                stack.enter_context(engines.at_sdpa_speed(self._engine, self._model, len(cuts)))
                stack.enter_context(_under(self._model, cuts, slice(None), device))
                stack.enter_context(engines.logit_rows(self._model, rows))
                logits: Tensor = self._model(self._inputs.expand(len(cuts), -1))
                return logits
            branches = self._behind(start)
            stack.enter_context(engines.at_sdpa_speed(self._engine, self._model, len(cuts)))
            stack.enter_context(engines.unwatched_blocks(self._engine, self._model))
            stack.enter_context(_under(self._model, cuts, slice(self._first, self._stop), device))
            rows = (self._rows - max(start, self._first)).expand(len(cuts), -1)
            stack.enter_context(engines.logit_rows(self._model, rows))
            from_start: Tensor = branches.run(len(cuts))
        return from_start

    def _behind(self, start: int) -> Any:
        """The prompt behind its first positions, which are run when they are others than before."""
        shared = max(0, start - self._first)
        if self._branches is None or self._branches.start != shared:
            self._branches = None  # its keys are not needed any more
            embeds = self._inputs.embeds[:, self._first : self._stop]
            attended = slice(self._first, self._stop)
            beside = self._inputs.decoder_inputs.items()
            decoder_inputs = {name: of_positions(name, value, attended) for name, value in beside}
            with (
                engines.at_sdpa_speed(self._engine, self._model, 1),
                engines.unwatched_blocks(self._engine, self._model),
            ):
                self._branches = engines.branches(self._engine, self._model, embeds, shared, decoder_inputs)
        return self._branches


@contextmanager
def _under(model: Any, cuts: Sequence[_Cut | None], attended: slice, device: torch.device) -> Iterator[None]:
    """A scope in which each branch of a pass has the unseen keys of its own cut."""
    stacked = list(_stacked(cuts, attended, device))
    with ExitStack() as stack:
        for by_layer in stacked:
            stack.enter_context(knocked_out(model, by_layer))
        yield
    for by_layer in stacked:
        if idle := [layer for layer, keys in by_layer.items() if not keys.asked]:
            raise LensplugError(
                f"a knockout did not act in layer {idle[0]}: its attention was not computed where knockouts reach it."
            )


def _stacked(cuts: Sequence[_Cut | None], attended: slice, device: torch.device) -> Iterator[dict[int, UnseenKeys]]:
    """The unseen keys of all branches, by layer; several, one after another, where heads or options differ."""
    layers = sorted({layer for cut in cuts if cut is not None for layer in cut.by_layer})
    alike: dict[Any, dict[int, list[tuple[int, UnseenKeys]]]] = {}
    for branch, cut in enumerate(cuts):
        for layer, each in ({} if cut is None else cut.by_layer).items():
            for number, keys in enumerate(each):
                heads = None if keys.heads is None else tuple(keys.heads.tolist())
                kind = (number, heads, keys.own)
                alike.setdefault(kind, {}).setdefault(layer, []).append((branch, keys))
    for by_layer in alike.values():
        yield {
            layer: _of_branches(by_layer[layer], len(cuts), attended, device) for layer in layers if layer in by_layer
        }


def _of_branches(
    some: Sequence[tuple[int, UnseenKeys]], count: int, attended: slice, device: torch.device
) -> UnseenKeys:
    branches, first = torch.tensor([branch for branch, _ in some], device=device), some[0][1]

    def each(masks: Sequence[Tensor]) -> Bool[Tensor, "branch pos"]:
        chosen = torch.cat(list(masks)).to(device)[:, attended]
        return torch.zeros(count, chosen.shape[1], dtype=torch.bool, device=device).index_copy(0, branches, chosen)

    queries, keys = each([unseen.queries for _, unseen in some]), each([unseen.keys for _, unseen in some])
    return UnseenKeys(queries, keys, first.heads, first.later_queries, first.later_keys, first.own)
