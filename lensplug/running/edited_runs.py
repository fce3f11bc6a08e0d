"""Many runs of one prompt that each differ from it from some layer on: batched, and begun at that layer.

For sweeps: an activation is patched, or a head cut, at one place after another, and only some logits are read. Copies
of the prompt are run side by side, each with an edit of its own; what they have in common, the blocks below the first
edit, is run once for all of them; attention runs at the speed of SDPA; logits are made where they are read. It is
reached through `lens.edited_runs`.

    with lens.edited_runs(inputs, rows) as runs:
        for layer, places in ...:                       # as many places at a time as runs.batch
            logits = runs.logits(len(places), [(name, hook)], from_layer=layer)   # [copy example row d_vocab]
        kept = runs.under_each([[Knockout("image", "last", layers=5)], ...], read)  # as many as wanted

A hook gets the activation of all copies at once, `[copy x example ...]`, each copy with all examples. Edits of
`lensplug.interventions` may be put in force inside the scope, on `runs.copies(n)`.

A copy costs what its edit can change. Behind the blocks that hooks see, these are the positions from its first edited
one on; a knockout needs no hook, so that one towards the last position costs that position, in the layers from its
first on. Where a position can depend on later ones (masks in which an image sees itself whole), where hooks of a user
see the blocks behind, or a block is of a kind that `short_blocks` does not know, all positions are computed. Under
edits that are in force when the scope begins, runs are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lensplug import engines
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.interventions.knockout import Knockout
from lensplug.patches.both.temporary_hooks import temporary_hooks
from lensplug.patches.later_positions import KeysAndValues, LaterPositions
from lensplug.positions.indices import watched_rows
from lensplug.running.caching import ROWS, Plan
from lensplug.running.gradients import frozen
from lensplug.running.knockouts_of_copies import cuts_of, each_in_force
from lensplug.running.memory_estimate import copies_that_fit

BATCH_POSITIONS = {"cpu": 2048, "cuda": 16384}
"""Positions of all copies together from which on a larger batch is no faster."""

EDITED_POSITIONS = 1024
"""Of all copies under knockouts, the positions that differ: enough to be fast, few beside the prompt's own run."""
SCORES_AT_ONCE = 2**22
"""The entries of a mask, of queries and keys of all copies under knockouts, that a pass may have."""
EMBEDDED_POSITIONS = 2**14
"""Of all copies under knockouts: what they share is not computed, but there are embeddings of it."""

Hooks = Sequence[tuple[str, Callable[..., Any]]]
Read = Callable[[Tensor], Tensor]
"""Logits `[copy example row d_vocab]` to what is kept of them, `[copy ...]`."""


@dataclass(eq=False)
class EditedRuns:
    """See the module; made by `edited_runs`."""

    model: Any
    engine: engines.EngineName
    inputs: MultimodalInput
    rows: Int[Tensor, "example row"] | None
    """Where logits are made; None: everywhere, with whole patterns."""
    whole_patterns: bool
    batch: int
    """How many copies run side by side; callers may run fewer."""
    unedited: Float[Tensor, "example row d_vocab"]
    """The logits of the prompt itself."""
    streams: Mapping[int, Float[Tensor, "example pos d_model"]]
    """Layer -> what enters it; empty where runs are whole."""
    _copied: dict[int, MultimodalInput] = field(default_factory=dict)
    _known: dict[int, KeysAndValues] = field(default_factory=dict)

    def copies(self, n_copies: int) -> MultimodalInput:
        """The inputs of so many copies of the prompt, each with all its examples."""
        if n_copies == 1:
            return self.inputs
        if n_copies not in self._copied:
            self._copied.clear()
            self._copied[n_copies] = cast(MultimodalInput, self.inputs[list(range(len(self.inputs))) * n_copies])
        return self._copied[n_copies]

    def logits(
        self, n_copies: int, hooks: Hooks = (), *, from_layer: int = 0, from_position: int = 0
    ) -> Float[Tensor, "copy example row d_vocab"]:
        """The logits of copies of the prompt.

        Args:
            n_copies: How many.
            hooks: What edits them: names of hooks and functions of activation `[copy x example ...]` and hook.
            from_layer: The first layer with an edit: blocks below are not run.
            from_position: The first position with an edit, of all copies and examples: behind the edited blocks, and
                where no hook sees them, positions before it are not run.
        """
        _refuse_below(hooks, from_layer)
        begin = later = None
        if from_layer in self.streams:
            begin = from_layer, self.streams[from_layer].repeat(n_copies, 1, 1)
        if self.streams and self.rows is not None and self.rows.numel():
            first = self._first_changed(from_position)
            later = LaterPositions(first, from_layer, self.streams, self.rows.repeat(n_copies, 1), self._known)
        logits = _run(
            self.model, self.engine, self.copies(n_copies), self.rows, self.whole_patterns, hooks, begin=begin,
            later=later,
        )  # fmt: skip
        return logits.view(n_copies, len(self.inputs), *logits.shape[1:])

    def under_each(
        self,
        variants: Sequence[Sequence[Knockout]],
        read: Read,
        *,
        done: Callable[[int], None] = lambda runs: None,
    ) -> Shaped[Tensor, "variant ..."]:
        """What is read of the logits under each of many knockouts, each in a copy of its own.

            by_layer = [[Knockout("image", "last", layers=layer)] for layer in range(24)]
            runs.under_each(by_layer, lambda logits: logits[:, 0, 0].argmax(-1))

        Args:
            variants: For each the knockouts that are in force together; an empty one is the prompt as it is.
            read: Takes the logits of some variants, `[variant example row d_vocab]`; returns what is kept of them,
                `[variant ...]`.
            done: Called after each pass with the number of its variants.

        Raises:
            LensplugError: If there are no variants, or a knockout changes nothing.
        """
        if not variants:
            raise LensplugError("there are no variants: give a list of knockouts for each, such as [[Knockout(...)]].")
        cuts = cuts_of(self.model, self.inputs, variants)
        kept: dict[int, Tensor] = {}
        while cuts:
            first, layer = cuts[0].from_position, cuts[0].from_layer
            at_once = self._under_knockouts_at_once(first)
            some = [cut for cut in cuts[:at_once] if cut.from_position == first]
            with each_in_force(self.model, some, len(self.inputs)):
                logits = self.logits(len(some), from_layer=layer, from_position=first)
            kept.update(zip((cut.index for cut in some), read(logits), strict=True))
            cuts = cuts[len(some) :]
            done(len(some))
        if uncut := [index for index in range(len(variants)) if index not in kept]:
            kept.update(dict.fromkeys(uncut, read(self.unedited[None])[0]))
            done(len(uncut))
        return torch.stack([kept[index] for index in range(len(variants))])

    def _first_changed(self, from_position: int) -> int:
        """The first position that edits of positions from there on, and what is read, are about."""
        looks_ahead = getattr(self.model.cfg, "looks_ahead_within", None) is not None
        return 0 if looks_ahead or self.rows is None else min(from_position, int(self.rows.min()))

    def _under_knockouts_at_once(self, from_position: int) -> int:
        """How many copies whose knockouts begin at this position are run side by side."""
        is_cut = bool(self.streams) and not self.whole_patterns
        if not is_cut or not engines.computes_parts(self.engine, self.model):
            return self.batch
        examples, length = self.inputs.tokens.shape
        edited = length - self._first_changed(from_position)
        return max(
            1,
            min(
                EDITED_POSITIONS // (examples * edited),
                SCORES_AT_ONCE // (examples * edited * length),
                EMBEDDED_POSITIONS // (examples * length),
            ),
        )


def _refuse_below(hooks: Hooks, from_layer: int) -> None:
    """Raise if a hook is in a block that is not run.

    Raises:
        LensplugError: It would edit nothing.
    """
    for name, _ in hooks:
        if name.startswith("blocks.") and int(name.split(".")[1]) < from_layer or name == "hook_embed" and from_layer:
            raise LensplugError(f"{name} is below from_layer={from_layer}, and would edit nothing: give its layer.")


@contextmanager
def edited_runs(
    model: Any,
    engine: engines.EngineName,
    inputs: MultimodalInput,
    rows: Int[Tensor, "example row"] | None,
    *,
    whole_patterns: bool = False,
    batch: int | None = None,
    whole_runs: bool = False,
    gradients: bool = False,
) -> Iterator[EditedRuns]:
    """A scope of edited runs; see `MultimodalLens.edited_runs`.

    Args:
        model: A model that the engine made.
        engine: A key of `ENGINES`.
        inputs: The prompt, of one example or several.
        rows: Positions whose logits are made, from the left; None: all, with whole patterns.
        whole_patterns: Make scores and patterns of all rows, for hooks that edit them.
        batch: How many copies run side by side; None: what fits into half of the free memory, and no more than makes
            it faster.
        whole_runs: Begin at the first layer, and run one copy at a time.
        gradients: For runs of which gradients are taken: no parameter requires one.

    Raises:
        LensplugError: If batch is less than 1.
    """
    if batch is not None and batch < 1:
        raise LensplugError(f"batch is {batch}, expected at least 1: how many runs are made side by side.")
    whole_patterns = whole_patterns or rows is None
    streams: dict[int, Tensor] = {}

    def keep(stream: Tensor, hook: Any) -> None:
        streams[int(hook.name.split(".")[1])] = stream.detach().clone()  # hooks may write into what they get

    names = (
        []
        if whole_runs
        else [f"blocks.{layer}.hook_resid_pre" for layer in range(1, engines.last_beginning(model) + 1)]
    )
    with ExitStack() as stack:
        if gradients:
            for context in (torch.inference_mode(False), torch.enable_grad(), frozen(model)):
                stack.enter_context(context)
        else:
            stack.enter_context(torch.no_grad())
        # First: what enters a block, before hooks of others, which see it again when a run begins there.
        with torch.no_grad(), temporary_hooks(model, [(name, keep) for name in names], first=True):
            unedited = _run(model, engine, inputs, rows, whole_patterns, ())
        if whole_runs:
            batch = 1
        elif batch is None:
            batch = _default_batch(model, engine, inputs, rows, whole_patterns, gradients=gradients)
        yield EditedRuns(model, engine, inputs, rows, whole_patterns, batch, unedited, streams)


def _run(
    model: Any,
    engine: engines.EngineName,
    inputs: MultimodalInput,
    rows: Int[Tensor, "example row"] | None,
    whole_patterns: bool,
    hooks: Hooks,
    *,
    begin: tuple[int, Tensor] | None = None,
    later: LaterPositions | None = None,
) -> Float[Tensor, "run row d_vocab"]:
    with ExitStack() as stack:
        rows = rows if rows is None else rows.repeat(len(inputs) // len(rows), 1)
        if not whole_patterns:
            # A row of patterns, where hooks see them: an edit, which would change nothing, is noticed, and refused.
            is_seen = engines.watched_patterns(model) or any(name.endswith(ROWS) for name, _ in hooks)
            shown = watched_rows(inputs.tokens) if is_seen else inputs.tokens.new_empty(len(inputs), 0)
            stack.enter_context(engines.attention_rows(engine, model, shown))
            stack.enter_context(engines.short_blocks(engine, model, later))
        if rows is not None:
            stack.enter_context(engines.logit_rows(model, rows))
        if begin is not None:
            stack.enter_context(engines.from_layer(model, *begin))
        stack.enter_context(temporary_hooks(model, hooks))
        logits: Tensor = model(inputs)
    return logits


def _default_batch(
    model: Any, engine: engines.EngineName, inputs: MultimodalInput, rows: Any, whole_patterns: bool, *, gradients: bool
) -> int:
    device = torch.device(model.cfg.device)
    useful = BATCH_POSITIONS.get(device.type, BATCH_POSITIONS["cpu"]) // inputs.tokens.numel()
    if useful <= 1:
        return 1
    nothing = None if whole_patterns else inputs.tokens.new_empty(len(inputs), 0)
    plan = Plan([], [], nothing, None, rows, None, {})
    n_kept = model.cfg.n_layers if gradients else 1  # the activations of a block, for the backward pass
    return max(1, min(useful, copies_that_fit(model, inputs, plan, engine=engine) // n_kept))
