"""How each analysis that a study measures is run over a batch of examples.

Three kinds. Analyses of a cache share one run of the model, which keeps what all of them read, where they read it.
Analyses that run the model themselves are given the examples. Those whose results are counts over many examples, or
activations, are kept as one result for each chunk; all others as a row for each example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lensplug.analysis.interventions.ablation_methods import NEED_STATISTICS
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.study import deletion_curves
from lensplug.study.media import Media

RunOptions = Mapping[str, Any]
"""Positions and reductions for `lens.run_with_cache`."""
GIVEN = {"cache", "attention", "modality", "lens", "inputs", "examples", "batch_size", "progress", "attention_mask"}
"""Arguments that the study gives itself."""


@dataclass(frozen=True)
class OfColumn:
    """An option whose value is in a column of the examples: `study.column("species")`."""

    name: str


@dataclass(frozen=True)
class Way:
    """How an analysis is run over a batch."""

    reads_cache: bool
    """Whether it reads a cache; else it is given the examples and runs the model itself."""
    rows: bool = True
    """Whether it has a row for each example; else its results are kept whole, one for each chunk."""
    run: Callable[[Mapping[str, Any]], RunOptions] = lambda options: {}
    """Its options -> those of the run."""
    measured: Callable[[Any, pd.DataFrame, Sequence[Media], Mapping[str, Any]], Result] | None = None
    """Of an analysis that takes no examples: the lens, rows, media and options -> its result."""
    hints: Mapping[str, Any] = field(default_factory=dict)
    """Option -> what a study takes, where that differs from the analysis's annotation."""
    refuse: Callable[[Mapping[str, Any]], None] = lambda options: None
    """Refuses options that a study cannot measure with."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What a study takes, as JSON, where the analysis has no default or another."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that are always given so: a worker shows no bar."""


def _query(options: Mapping[str, Any]) -> RunOptions:
    return {"query_positions": [options.get("query", -1)]}


def _residual(options: Mapping[str, Any]) -> RunOptions:
    positions = options.get("positions", -1)
    return (
        {} if positions is None else {"residual_positions": positions if isinstance(positions, list) else [positions]}
    )


def _activations(options: Mapping[str, Any]) -> RunOptions:
    """Of the residual stream one position; of what is pooled, and of other activations, all."""
    is_residual = options.get("hook", "resid_post").startswith("resid")
    return {"residual_positions": [options.get("position", -1)]} if is_residual and not options.get("pool") else {}


def _position(options: Mapping[str, Any]) -> RunOptions:
    return {name: [options.get("position", -1)] for name in ("query_positions", "residual_positions")}


def _refuse_by_position(options: Mapping[str, Any]) -> None:
    """Refuse a direct attribution whose numbers or options belong to the positions of one prompt."""
    if options.get("by") == "source":
        raise LensplugError(
            "by='source' has a value for each position, and position 5 of one prompt is nothing that position 5 of"
            " another is: by='modality' says what heads bring from each modality."
        )
    if not isinstance(options.get("position", -1), int):
        raise LensplugError(
            "position is a list, and a study asks about one position of every example: give one number."
        )


def _refuse_what_needs_all(options: Mapping[str, Any]) -> None:
    """Refuse options of a modality ablation whose meaning depends on all examples."""
    if options.get("method") in NEED_STATISTICS:
        raise LensplugError(
            f"method {options['method']!r} takes statistics over all examples, and a study never sees all of them at"
            " once: choose 'remove', 'zero', 'blank' or 'silence'."
        )
    if options.get("classes") is None:
        raise LensplugError(
            "modality_ablation takes its classes from the answers of all examples, and a study never sees all of them"
            " at once: give classes=[...]."
        )


def _refuse_means(options: Mapping[str, Any]) -> None:
    """Refuse to deactivate neurons to their means, which depend on all examples."""
    if options.get("value") == "mean":
        raise LensplugError(
            "value='mean' takes means over all examples, and a study never sees all of them at once: give a number."
        )


WAYS: dict[str, Way] = {
    "head_specialization": Way(reads_cache=True, run=_query),
    "modality_null": Way(reads_cache=True, run=_query),
    "spatial_entropy": Way(reads_cache=True, run=_query),
    "logit_lens": Way(reads_cache=True, run=_residual),
    "direct_attribution": Way(reads_cache=True, run=_position, refuse=_refuse_by_position),
    "neuron_activity": Way(reads_cache=True, rows=False),
    "activations": Way(reads_cache=True, rows=False, run=_activations),
    "modality_ablation": Way(reads_cache=False, refuse=_refuse_what_needs_all),
    "grounding": Way(reads_cache=False),
    "deletion_curve": Way(
        reads_cache=False,
        measured=deletion_curves.measured,
        hints=deletion_curves.HINTS,
        refuse=deletion_curves.refuse,
        defaults=deletion_curves.DEFAULTS,
    ),
    "neuron_ablation": Way(reads_cache=False, refuse=_refuse_means),
    "information_flow": Way(
        reads_cache=False,
        fixed={"progress": False},
        hints={"paths": Sequence[Sequence[str]], "layers": Sequence[int] | None},
    ),
}
"""The analyses that a study measures."""
