"""A batch of examples, measured: all analyses that read a cache share one run of the model."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pandas as pd

from lensplug.analysis.interventions.ablation_run import Example
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.study.measurements import Measurement
from lensplug.study.media import Media, by_kind


def run_batch(
    lens: Any, measurements: Sequence[Measurement], rows: pd.DataFrame, media: Sequence[Media]
) -> dict[str, Any]:
    """Measure a batch.

    Args:
        lens: The model.
        measurements: What.
        rows: The examples, as in the tables of a study.
        media: For each of them "images", "videos" and "audio" -> what `lens.prepare` takes.

    Returns:
        Name of a measurement -> its result.

    What one of them raises has its name in `measuring`.
    """
    results: dict[str, Result] = {}
    for together in _by_edits(measurements):
        with lens.intervene(*together[0].edits) if together[0].interventions else nullcontext():
            results |= _run_alike(lens, together, rows, media)
    return results


def _by_edits(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    """Those that are measured under the same edits, which share runs."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(json.dumps(list(measurement.interventions)), []).append(measurement)
    return list(groups.values())


def _run_alike(
    lens: Any, measurements: Sequence[Measurement], rows: pd.DataFrame, media: Sequence[Media]
) -> dict[str, Result]:
    results: dict[str, Result] = {}
    of_cache = [measurement for measurement in measurements if measurement.way.reads_cache]
    if of_cache:
        inputs = lens.prepare(rows.prompt.tolist(), **by_kind(media))
        _, cache = lens.run_with_cache(inputs, **_run_options(of_cache))
        for measurement in of_cache:
            with _said(measurement):
                arguments = measurement.arguments(rows, lens.tokenizer)
                if "modality" in inspect.signature(measurement.function).parameters:
                    arguments["modality"] = inputs.modality
                results[measurement.name] = measurement.function(cache, **arguments)
        del cache
    by_themselves = [measurement for measurement in measurements if not measurement.way.reads_cache]
    for measurement in by_themselves:
        if measurement.way.measured is not None:
            options = {**measurement.way.defaults, **measurement.options}
            with _said(measurement):
                results[measurement.name] = measurement.way.measured(lens, rows, media, options)
    given = [measurement for measurement in by_themselves if measurement.way.measured is None]
    if given:
        with _said(*given):
            examples = [_example(row, of_example) for row, of_example in zip(rows.itertuples(), media, strict=True)]
        for measurement in given:
            with _said(measurement):
                arguments = measurement.arguments(rows, lens.tokenizer)
                arguments |= {"batch_size": len(rows), **measurement.way.fixed}
                results[measurement.name] = measurement.function(lens, examples, **arguments)
    return results


@contextmanager
def _said(*measurements: Measurement) -> Iterator[None]:
    """A scope in which what is raised says whose it is: the row of an example that fails names it."""
    try:
        yield
    except Exception as error:
        error.measuring = tuple(measurement.name for measurement in measurements)  # type: ignore[attr-defined]
        raise


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


def _example(row: Any, media: Media) -> Example:
    if not isinstance(row.target, str) or not row.target:
        raise LensplugError("the example has no answer to be scored: add examples with a column 'target'.")
    files: dict[str, Any] = {kind: list(of_kind) for kind, of_kind in media.items()}
    return Example(row.prompt, row.target, **files)
