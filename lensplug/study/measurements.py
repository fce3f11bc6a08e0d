"""What a study measures of each example: an analysis with its options, and how it is run over a batch.

Three kinds. Analyses of a cache share one run of the model, which keeps what all of them read, where they read it.
Analyses that run the model themselves are given the examples. Those whose results are counts over many examples, or
activations, are kept as one result for each chunk; all others as a row for each example.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, get_type_hints

import pandas as pd
import torch

from lensplug import analysis as analyses
from lensplug.analysis.interventions.ablation_methods import NEED_STATISTICS
from lensplug.analysis.interventions.ablation_run import Example
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.positions.tokens import single_token
from lensplug.study.identity import hash_of
from lensplug.validation.arguments import admitted, described

RunOptions = Mapping[str, Any]
"""Positions and reductions for `lens.run_with_cache`."""
GIVEN = {"cache", "modality", "lens", "examples", "batch_size", "progress", "attention_mask"}
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


WAYS: dict[str, Way] = {
    "head_specialization": Way(reads_cache=True, run=_query),
    "modality_null": Way(reads_cache=True, run=_query),
    "logit_lens": Way(reads_cache=True, run=_residual),
    "neuron_activity": Way(reads_cache=True, rows=False),
    "activations": Way(reads_cache=True, rows=False, run=_activations),
    "modality_ablation": Way(reads_cache=False),
    "grounding": Way(reads_cache=False),
    "neuron_ablation": Way(reads_cache=False),
}
"""The analyses that a study measures."""


@dataclass(frozen=True)
class Measurement:
    """One analysis with its options."""

    analysis: str
    """Its name in `lensplug.analysis`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """As JSON holds them; `OfColumn` as {"column": name}."""
    name: str = ""
    """What its columns begin with; the analysis's name by default."""

    @property
    def key(self) -> str:
        """What identifies it."""
        return hash_of([self.analysis, self.options, self.name])

    @property
    def way(self) -> Way:
        """How it is run."""
        return WAYS[self.analysis]

    @property
    def function(self) -> Callable[..., Any]:
        """The analysis itself."""
        function: Callable[..., Any] = getattr(analyses, self.analysis)
        return function

    @property
    def needed(self) -> Any:
        """What `needs` of a run is given for it: the analysis, with the options that may say which hooks it reads."""
        options = {name: value for name, value in self.options.items() if not isinstance(value, Mapping)}
        return partial(self.function, **options) if options else self.function

    def reads(self, hook: str) -> bool:
        """Whether it reads a hook."""
        with_options = getattr(self.function, "needs_with", None)
        needs = self.needed.func.needs_with(**self.needed.keywords) if with_options and self.options else None
        return bool((needs or getattr(self.function, "needs"))(hook))  # noqa: B009,  an analysis of a cache

    @cached_property
    def kind(self) -> type[Result]:
        """The class of its results."""
        kind: type[Result] = get_type_hints(inspect.unwrap(self.function))["return"]
        return kind

    def arguments(self, rows: pd.DataFrame, tokenizer: Any) -> dict[str, Any]:
        """The options for a batch, columns looked up.

        Raises:
            LensplugError: If a target is not one token.
        """
        values: dict[str, Any] = {}
        for name, value in self.options.items():
            if not isinstance(value, Mapping):
                values[name] = value
                continue
            column = rows[value["column"]].tolist()
            if self.analysis == "logit_lens":
                values[name] = torch.tensor([single_token(str(word), tokenizer) for word in column])
            else:
                values[name] = [str(text) for text in column]
        return values


def measurement_of(function: Callable[..., Any] | str, name: str | None, options: Mapping[str, Any]) -> Measurement:
    """An analysis and its options, checked as far as they can be without a model.

    Raises:
        LensplugError: If a study cannot measure it, or an option is unknown or of another type.
    """
    called = function if isinstance(function, str) else getattr(function, "__name__", repr(function))
    if called not in WAYS or not (isinstance(function, str) or getattr(analyses, called) is function):
        raise LensplugError(
            f"a study does not measure {called!r}: it measures {', '.join(map(repr, WAYS))} of lensplug.analysis."
        )
    signature = inspect.signature(inspect.unwrap(getattr(analyses, called)))
    given = GIVEN if WAYS[called].reads_cache else GIVEN - {"modality"}
    allowed = {key: value for key, value in signature.parameters.items() if key not in given}
    for key, value in options.items():
        if key not in allowed:
            raise LensplugError(f"{called} takes no option {key!r} in a study: it takes {', '.join(allowed)}.")
        if not isinstance(value, OfColumn):
            hints = get_type_hints(inspect.unwrap(getattr(analyses, called)))
            admitted(value, hints[key], key)
    if isinstance(options.get("query"), list | tuple):
        raise LensplugError("query is a list, and a study asks about one position of every example: give one number.")
    missing = [key for key, value in allowed.items() if value.default is value.empty and key not in options]
    if missing:
        raise LensplugError(f"{called} needs {missing[0]}: study.measure(analysis.{called}, {missing[0]}=...).")
    if called == "modality_ablation":
        _refuse_what_needs_all(options)
    if called == "neuron_ablation" and options.get("value") == "mean":
        raise LensplugError(
            "value='mean' takes means over all examples, and a study never sees all of them at once: give a number."
        )
    return Measurement(called, {key: _plain(key, value) for key, value in sorted(options.items())}, name or called)


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


def _plain(name: str, value: Any) -> Any:
    """An option as JSON, which reads it back the same."""
    if isinstance(value, OfColumn):
        return {"column": value.name}
    plain = _lists(value)
    try:
        if json.loads(json.dumps(plain, allow_nan=False)) == plain and not isinstance(plain, dict):
            return plain
    except (TypeError, ValueError):
        pass
    raise LensplugError(f"{name} is {described(value)}, and a study writes options into a file: give numbers or texts.")


def _lists(value: Any) -> Any:
    """Tuples and ranges as lists, which JSON has, also within lists: pairs of (layer, neuron)."""
    return [_lists(item) for item in value] if isinstance(value, list | tuple | range) else value


def run_batch(
    lens: Any, measurements: Sequence[Measurement], rows: pd.DataFrame, media: Sequence[Any]
) -> dict[str, Any]:
    """Measure a batch.

    Args:
        lens: The model.
        measurements: What.
        rows: The examples, as in the tables of a study.
        media: For each of them "images", "videos" and "audio" -> what `lens.prepare` takes.

    Returns:
        Name of a measurement -> its result.
    """
    results: dict[str, Result] = {}
    of_cache = [measurement for measurement in measurements if measurement.way.reads_cache]
    if of_cache:
        inputs = lens.prepare(rows.prompt.tolist(), **_by_kind(media))
        _, cache = lens.run_with_cache(inputs, **_run_options(of_cache))
        for measurement in of_cache:
            arguments = measurement.arguments(rows, lens.tokenizer)
            if "modality" in inspect.signature(measurement.function).parameters:
                arguments["modality"] = inputs.modality
            results[measurement.name] = measurement.function(cache, **arguments)
        del cache
    given = [measurement for measurement in measurements if not measurement.way.reads_cache]
    if given:
        examples = [_example(row, of_example) for row, of_example in zip(rows.itertuples(), media, strict=True)]
        for measurement in given:
            arguments = measurement.arguments(rows, lens.tokenizer)
            results[measurement.name] = measurement.function(lens, examples, batch_size=len(rows), **arguments)
    return results


def _run_options(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """One run for all: the hooks and positions that any of them reads."""
    options: dict[str, Any] = {"needs": [measurement.needed for measurement in measurements], "logit_positions": [-1]}
    each = [measurement.way.run(measurement.options) for measurement in measurements]
    for name, suffixes in READ_AT.items():
        readers = [
            run for run, measurement in zip(each, measurements, strict=True) if any(map(measurement.reads, suffixes))
        ]
        if readers and all(name in run for run in readers):
            options[name] = list(dict.fromkeys(position for run in readers for position in run[name]))
        elif not readers and name == "query_positions":
            options[name] = []  # nobody reads patterns: attention runs at full speed
    return options


READ_AT = {
    "query_positions": ("blocks.0.attn.hook_pattern",),
    "residual_positions": ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.0.hook_resid_mid"),
}
"""Option of a run -> hooks of which it keeps some positions."""


def _by_kind(media: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
    """The media of a batch as `lens.prepare` takes them."""
    kinds = {kind for of_example in media for kind, files in of_example.items() if files}
    return {kind: [list(of_example.get(kind, ())) for of_example in media] for kind in sorted(kinds)}


def _example(row: Any, media: Mapping[str, Sequence[Any]]) -> Example:
    if not isinstance(row.target, str) or not row.target:
        raise LensplugError("the example has no answer to be scored: add examples with a column 'target'.")
    files: dict[str, Any] = {kind: list(of_kind) for kind, of_kind in media.items()}
    return Example(row.prompt, row.target, **files)
