"""Means over the examples of a study, streamed chunk by chunk, as a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from lensplug.analysis.group_means import GroupMeans
from lensplug.statistics import Bootstrap, Moments
from lensplug.study.groups import MEDIA, Chunks, names_in

IntervalKind = Literal["bootstrap", "normal"]


@dataclass(frozen=True)
class IntervalOptions:
    """How intervals of means are made."""

    kind: IntervalKind | None
    clusters: str | None
    """The column of what is drawn together; by default the media of an example."""
    confidence: float
    replicates: int
    seed: int

    @property
    def words(self) -> str:
        """What the limits are."""
        if self.kind is None:
            return ""
        share = f"{self.confidence:.0%}"
        if self.kind == "normal":
            return f"{share}, standard errors of independent examples"
        return f"{share}, bootstrap over {self.clusters or MEDIA}, percentiles of {self.replicates} replicates"


def means(
    chunks: Chunks,
    analysis: str,
    by: str | None,
    number: str | None,
    options: IntervalOptions,
    over: str | None = None,
) -> GroupMeans | None:
    """Means by group; None where there are no results."""
    moments, bootstrap = Moments(), Bootstrap(replicates=options.replicates, seed=options.seed)
    labels: Mapping[str, Sequence[Any]] = {}
    chosen, provenance = "", None
    for examples, result in chunks:
        measured = result.over_examples().averaged(over)
        chosen, tensor = measured.number(number)
        labels, provenance = measured.labels, result.provenance
        values, groups = tensor.double().numpy(), names_in(examples, by) if by else ["all"] * len(examples)
        moments.add(values, groups)
        if options.kind == "bootstrap":
            bootstrap.add(values, groups, names_in(examples, options.clusters or MEDIA))
    if provenance is None:
        return None
    low, high = _limits(options, moments, bootstrap)
    return GroupMeans(
        table=_table(moments, labels, low, high),
        analysis=analysis,
        number=chosen,
        group_by=by or "",
        groups=moments.groups,
        labels=tuple(labels),
        interval=options.words,
        provenance=provenance,
    )


def _limits(options: IntervalOptions, moments: Moments, bootstrap: Bootstrap) -> tuple[np.ndarray, np.ndarray]:
    """The limits of each mean, `[group row]`."""
    if options.kind is None:
        nothing = np.full(moments.mean.shape, np.nan)
        return nothing, nothing
    if options.kind == "bootstrap":
        interval = bootstrap.interval(confidence=options.confidence)
        return interval.low, interval.high
    from scipy.stats import norm

    half = norm.ppf((1 + options.confidence) / 2) * moments.standard_error
    return moments.mean - half, moments.mean + half


def _table(moments: Moments, labels: Mapping[str, Sequence[Any]], low: np.ndarray, high: np.ndarray) -> pd.DataFrame:
    """One row for each group and labelled row that any example has."""
    numbers = {"mean": moments.mean, "standard_error": moments.standard_error, "low": low, "high": high}
    parts = [
        pd.DataFrame(
            {
                "group": group,
                **labels,
                **{name: each[index] for name, each in numbers.items()},
                "count": moments.count[index],
            }
        )
        for index, group in enumerate(moments.groups)
    ]
    table = pd.concat(parts, ignore_index=True)
    return table[table["count"] > 0].reset_index(drop=True)
