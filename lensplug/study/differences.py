"""Differences between groups of examples of a study, or between two studies, as a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lensplug.analysis.group_differences import GroupDifferences
from lensplug.analysis.provenance import Provenance
from lensplug.errors import LensplugError
from lensplug.statistics import group_differences, paired_differences
from lensplug.statistics.corrections import Correction
from lensplug.study.groups import MEDIA, Chunks, names_in
from lensplug.validation.arguments import at_least


@dataclass(frozen=True)
class ComparisonOptions:
    """How two sides are compared."""

    pairs: str | None
    """The column that names pairs; by default media, where both sides have the same."""
    clusters: str | None
    """The column of what is drawn and shuffled together; by default the media of an example."""
    correction: Correction
    """For the number of rows."""
    confidence: float
    """Of intervals."""
    permutations: int
    """How many."""
    seed: int
    """Of permutations and bootstrap."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison, in memory."""

    name: str
    values: np.ndarray
    """`[example row]`."""
    examples: pd.DataFrame
    labels: Mapping[str, Sequence[Any]]
    number: str
    provenance: Provenance


def side(chunks: Chunks, name: str, number: str | None, by: str | None = None, over: str | None = None) -> Side:
    """The examples of a group, or all of them.

    Raises:
        LensplugError: If there are none.
    """
    tables, values, last = [], [], None
    for examples, result in chunks:
        measured = result.over_examples().averaged(over)
        chosen, tensor = measured.number(number)
        in_group = np.ones(len(examples), bool) if by is None else np.array(names_in(examples, by)) == name
        tables.append(examples[in_group])
        values.append(tensor.double().numpy()[in_group])
        last = (measured.labels, chosen, result.provenance)
    if last is None or not sum(map(len, tables)):
        raise LensplugError(f"no example with results has {by} {name!r}." if by else f"{name} has no results yet.")
    return Side(name, np.concatenate(values), pd.concat(tables, ignore_index=True), *last)


def differences(a: Side, b: Side, analysis: str, options: ComparisonOptions) -> GroupDifferences:
    """The first side less the second, in each row.

    Raises:
        LensplugError: If they have different rows, or some of their media in common and nobody says what pairs them.
    """
    if dict(a.labels) != dict(b.labels):
        raise LensplugError(
            "the two sides were measured in different rows (layers, heads, classes): nothing to compare."
        )
    at_least(0, seed=options.seed)
    pair_by = options.pairs or _pairs(a, b)
    by_cluster = [names_in(one.examples, options.clusters or MEDIA) for one in (a, b)]
    shared: dict[str, Any] = {
        name: getattr(options, name) for name in ("correction", "confidence", "permutations", "seed")
    }
    if pair_by is not None:
        found = paired_differences(
            a.values,
            b.values,
            a_pairs=names_in(a.examples, pair_by),
            b_pairs=names_in(b.examples, pair_by),
            a_clusters=by_cluster[0],
            **shared,
        )
    else:
        found = group_differences(a.values, b.values, a_clusters=by_cluster[0], b_clusters=by_cluster[1], **shared)
    how = f"pairs by {pair_by}, bootstrap interval" if pair_by else "different examples, Welch's interval"
    many = f"{'all' if found.is_exact else found.permutations} permutations, correction {options.correction}"
    columns = ("difference", "low", "high", "p_value", "adjusted_p_value", "count", "clusters")
    return GroupDifferences(
        table=pd.DataFrame({**a.labels, **{name: getattr(found, name) for name in columns}}),
        analysis=analysis,
        number=a.number,
        names=(a.name, b.name),
        labels=tuple(a.labels),
        paired=pair_by is not None,
        convention=f"{how} {options.confidence:.0%}, {many}",
        provenance=a.provenance,
    )


def _pairs(a: Side, b: Side) -> str | None:
    """What pairs the examples of two sides, where nobody says: media that both have, or nothing.

    Raises:
        LensplugError: If they have some in common, and each has others.
    """
    first, second = (set(names_in(one.examples, MEDIA)) for one in (a, b))
    shared = first & second
    if shared and len(shared) < min(len(first), len(second)):
        raise LensplugError(
            f"{len(shared)} of {len(first)} and {len(second)} pictures or sounds are in both groups, and each has"
            " others: give pairs='media' to compare those in both, or leave them out of one group."
        )
    return MEDIA if shared else None
