"""Run a core and cache only what an analysis reads: rows of patterns, some residuals, some logits.

`MultimodalLens.run_with_cache` is the way here. TransformerLens's own cache keeps whole activations; of a prompt with
an image most of them are never read.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug import engines, reductions
from lensplug.cache.lens_cache import LensCache
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.patches.both.temporary_hooks import temporary_hooks
from lensplug.positions.by_modality import PositionsName, named, rows_at
from lensplug.positions.indices import Positions, resolve_positions, watched_rows
from lensplug.provenance.fingerprint import fingerprint
from lensplug.reductions import Keep, Reduction
from lensplug.validation.finite import refuse_overflow

RESIDUALS = (
    "hook_embed",
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_per_layer_out",
    "hook_deepstack",
    "hook_resid_post",
)
"""Hooks of the residual stream: `residual_positions` are kept of them."""
ROWS = ("hook_attn_scores", "hook_pattern")
"""Hooks that have `query_positions` only."""

HookName = str | tuple[str, int] | tuple[str, int, str]
"""A hook, or TransformerLens's short form: "resid_post" in every layer, ("resid_post", 3), ("scale", 3, "ln1")."""
NamesFilter = HookName | Sequence[HookName] | Callable[[str], bool] | None
PositionsOrModality = Positions | PositionsName | Sequence[PositionsName]
"""Positions, or "image": all of a modality's."""


@runtime_checkable
class Needs(Protocol):
    """An analysis, as seen by the runner: it says which hooks it reads."""

    needs: Callable[[str], bool]


Needed = Needs | str | Sequence[Needs | str | partial[Any]] | Callable[..., Any] | None
"""Analyses, their names, or `functools.partial(analysis, option=...)` where options say what is read; other functions
are refused with the list of analyses."""


@dataclass(frozen=True)
class Plan:
    """What one run keeps, and where: the options of `MultimodalLens.run_with_cache`, checked against its inputs."""

    names: Sequence[str]
    """The hooks whose activations are kept, in the model's order."""
    reductions: Sequence[Reduction]
    """What is kept of patterns that are too large to keep."""
    query_positions: Int[Tensor, "batch query"] | None
    """Rows of scores and patterns that are made, counted from the left; None: all."""
    residual_positions: Int[Tensor, "batch residual"] | None
    """Positions of the residual stream that are kept, counted from the left; None: all."""
    logit_positions: Int[Tensor, "batch logit"] | None
    """Positions whose logits are made, counted from the left; None: all."""
    device: Any
    """Where activations are kept; None: on the device where they are computed."""
    others: Mapping[str, Any]
    """Arguments that are passed on to TransformerLens."""

    @classmethod
    def of(
        cls,
        model: Any,
        inputs: MultimodalInput,
        *,
        names_filter: NamesFilter = None,
        needs: Needed = None,
        keep: Keep = None,
        query_positions: PositionsOrModality | None = None,
        residual_positions: PositionsOrModality | None = None,
        logit_positions: PositionsOrModality | None = None,
        device: Any = None,
        **others: Any,
    ) -> Plan:
        """The plan that these options mean.

        Raises:
            LensplugError: If a position is out of range, or options do not go together.
        """
        keeps_hook = predicate(names_filter)
        if needs is not None:
            if names_filter is not None:
                raise LensplugError("needs and names_filter both say what to keep: give one of them.")
            keeps_hook = _any_of([analysis.needs for analysis in _analyses(needs)])
        if logit_positions is not None and others.get("return_type", "logits") not in ("logits", None):
            raise LensplugError("a loss needs the logits of every position: leave logit_positions out.")
        if not others.get("return_cache_object", True):
            raise LensplugError("return_cache_object=False is not taken: dict(cache.items()) is what it would return.")
        chosen = reductions.chosen(keep)
        if (residual_positions is not None or chosen) and (unknown := set(others) - {"return_type"}):
            cut = "residual_positions" if residual_positions is not None else "keep"  # of all layers, or it lies
            raise LensplugError(f"with {cut}, {', '.join(sorted(unknown))} cannot be given.")
        return cls(
            names_taken(model, keeps_hook),
            chosen,
            _rows([] if chosen and query_positions is None else query_positions, inputs, "query_positions"),
            _rows(residual_positions, inputs, "residual_positions"),
            _rows(logit_positions, inputs, "logit_positions"),
            device,
            others,
        )


def run_with_cache(
    model: Any, engine: engines.EngineName, inputs: MultimodalInput, plan: Plan
) -> tuple[Float[Tensor, ...] | None, LensCache]:
    """Logits and cache, without gradients; see `MultimodalLens.run_with_cache`."""
    # Before the run: its weights and modules, just looked at, are then still in the processor's cache.
    known: dict[str, Any] = {
        "query_positions": plan.query_positions,
        "residual_positions": plan.residual_positions,
        "weights": fingerprint(model),
    }
    accumulators = [accumulator.begin(inputs, model.cfg.n_layers, model.cfg.n_heads) for accumulator in plan.reductions]

    def each_block(layer: int, start: int, pattern: Float[Tensor, "batch head row key"]) -> None:
        for accumulator in accumulators:
            accumulator(layer, start, pattern)

    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(refuse_overflow(model, inputs.attention_mask, each_score=plan.query_positions is None))
        if plan.query_positions is not None:
            rows = plan.query_positions if plan.query_positions.shape[1] else watched_rows(inputs.tokens)
            block_callback = each_block if accumulators else None
            stack.enter_context(engines.attention_rows(engine, model, rows, each_block=block_callback))
            stack.enter_context(engines.short_blocks(engine, model))
        if plan.logit_positions is not None:
            stack.enter_context(engines.logit_rows(model, plan.logit_positions))
        if set(plan.others) <= {"return_type"}:
            logits, kept_here = _keeping(model, inputs, plan)
            cache = LensCache.of(kept_here, model, inputs, **known)
        else:
            elsewhere = {} if plan.device is None else {"device": plan.device}
            kept_names = set(plan.names).__contains__
            logits, library_cache = model.run_with_cache(inputs, names_filter=kept_names, **elsewhere, **plan.others)
            cache = LensCache.of(library_cache.cache_dict, model, inputs, **known)
            cache.has_batch_dim = library_cache.has_batch_dim
            if plan.query_positions is not None:
                rows_kept = plan.query_positions.shape[1]
                cache.cache_dict |= {
                    name: value[..., :rows_kept, :] for name, value in cache.items() if name.endswith(ROWS)
                }
    for accumulator in accumulators:
        cache.add(accumulator.named, accumulator.noted, plan.device)
    return logits, cache


def _analyses(needs: Any) -> list[Needs]:
    """The analyses that are meant, of one, its name, or several.

    Raises:
        LensplugError: If one is no analysis of a cache.
    """
    several = needs if isinstance(needs, list | tuple | set) else [needs]
    resolved: list[Needs] = []
    for given in several:
        analysis, options = (given.func, given.keywords) if isinstance(given, partial) else (given, {})
        function = _by_name().get(analysis.removeprefix("analysis.")) if isinstance(analysis, str) else analysis
        if not isinstance(function, Needs):
            public_analyses, called = (
                _by_name(),
                analysis if isinstance(analysis, str) else getattr(analysis, "__name__", type(analysis).__name__),
            )
            near = difflib.get_close_matches(str(called), public_analyses, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise LensplugError(
                f"needs has {called!r}, expected analyses of a cache, or their names:"
                f" {', '.join(sorted(public_analyses))}.{hint}"
            )
        with_options = getattr(function, "needs_with", None) if options else None
        needed: Any = function if with_options is None else SimpleNamespace(needs=with_options(**options))
        resolved.append(needed)
    return resolved


def _by_name() -> dict[str, Needs]:
    """Every analysis that reads a cache."""
    # Looked up by name when asked for: an analysis knows caches, not the other way round.
    door = import_module("lensplug.analysis")
    public = {name: getattr(door, name) for name in dir(door)}  # imported only now, on demand
    return {
        name: public_object
        for name, public_object in public.items()
        if isinstance(public_object, Needs) and not isinstance(public_object, type)
    }


def _rows(positions: PositionsOrModality | None, inputs: MultimodalInput, name: str) -> Int[Tensor, "batch row"] | None:
    if positions is None:
        return None
    if (names := named(positions)) is not None:
        return rows_at(names, inputs, name)
    if isinstance(positions, Sequence) and not positions:
        return inputs.tokens.new_empty(len(inputs), 0)
    return resolve_positions(cast(Positions, positions), inputs.attention_mask, name=name)


def _keeping(model: Any, inputs: MultimodalInput, plan: Plan) -> tuple[Float[Tensor, ...] | None, dict[str, Tensor]]:
    """What TransformerLens's cache holds, but of the residual stream only the chosen positions, cut out as it runs.

    The rows of all layers are in one tensor. Separate ones would be allocated between temporary activations, and leave
    holes that the heap cannot use for the next: at thousands of positions more than all rows together.
    """
    kept_here: dict[str, Tensor] = {}
    places: dict[str, Tensor] = {}
    rows = None if plan.query_positions is None else plan.query_positions.shape[1]
    residual_index = plan.residual_positions
    if residual_index is not None:
        residual_index = residual_index[:, :, None].expand(-1, -1, model.cfg.d_model)

    def keep(activation: Tensor, hook: Any) -> None:
        name: str = hook.name
        if rows is not None and name.endswith(ROWS):
            cut = activation[:, :, :rows]
        elif residual_index is not None and name.endswith(RESIDUALS):
            cut = activation.gather(1, residual_index.to(activation.device))
        else:
            kept_here[name] = activation.detach() if plan.device is None else activation.detach().to(plan.device)
            return
        if name not in places:
            kind = name.rpartition(".")[2]
            same_kind = [other for other in plan.names if other.endswith(kind)]
            together = torch.empty(len(same_kind), *cut.shape, dtype=cut.dtype, device=plan.device or activation.device)
            places.update((other, together[number]) for number, other in enumerate(same_kind))
        kept_here[name] = places[name].copy_(cut)

    with temporary_hooks(model, ((name, keep) for name in plan.names)):
        logits = model.forward(inputs, **plan.others)
    return logits, kept_here


def predicate(names_filter: NamesFilter) -> Callable[[str], bool]:
    """What TransformerLens calls a names_filter, as a function of the name; None keeps everything."""
    if names_filter is None:
        return lambda name: True
    if callable(names_filter):
        return names_filter
    names = {names_filter} if isinstance(names_filter, str) else set(names_filter)
    return lambda name: name in names


def _any_of(wanted: Sequence[Callable[[str], bool]]) -> Callable[[str], bool]:
    """Whether one of them takes a name. A loop: a generator for each of a model's names takes three times as long."""

    def is_taken(name: str) -> bool:
        for takes in wanted:  # noqa: SIM110
            if takes(name):
                return True
        return False

    return is_taken


def names_taken(model: Any, wanted: Callable[[str], bool]) -> list[str]:
    """The hooks of a model that a function of the name takes, each once and in the model's order."""
    points = model.hook_dict
    # A bridge's are asked for HookedTransformer's names; where the function takes none of them, for the bridge's.
    names = points.taken_by(wanted) if hasattr(points, "taken_by") else [name for name in points if wanted(name)]
    return list(dict.fromkeys(points[name].name for name in names))
