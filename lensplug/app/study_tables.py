"""The tables of a study's page: the heads that look most, what the model says, and which rows differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lensplug import analysis
from lensplug.app.study_facts import Asked
from lensplug.study import StudyResult
from lensplug.study.groups import names_in
from lensplug.views.page.plain import Table

HEADS = 10
"""Rows of a table of heads."""
ANSWERS = 8
"""Answers that are counted by themselves."""


@dataclass
class Answers:
    """What the model says, counted while the logit lens of a study is read."""

    by_group: dict[str, Counter[str]] = field(default_factory=dict)
    by_example: dict[str, str] = field(default_factory=dict)
    """Of the first examples of each group only."""


def answers_of(result: StudyResult, asked: Asked, enough: int = 8) -> Answers:
    """The last layer's top token at the last position that was read, of each example.

    Args:
        result: A logit lens.
        asked: What the page is about.
        enough: Of how many examples of each group the answers are kept one by one.
    """
    answers = Answers()
    for examples, part in result.chunks():
        assert isinstance(part, analysis.LogitLens)
        groups = names_in(examples, asked.by) if asked.by else ["all"] * len(examples)
        for identifier, group, texts in zip(examples.id, groups, part.top_texts, strict=True):
            counted = answers.by_group.setdefault(group, Counter())
            text = texts[-1][-1][0]
            if counted.total() < enough:
                answers.by_example[identifier] = text
            counted[text] += 1
    return answers


def top_heads(result: StudyResult, asked: Asked, medium: str) -> Table:
    """The heads with the largest mean mass, over all examples and in each group, with their limits."""
    mass = _of_class(result.mean(number="mass").table, medium)
    preference = _of_class(result.mean(number="preference", interval=None).table, medium)
    top = mass.nlargest(HEADS, "mean")
    by_group = _of_class(result.mean(asked.by, number="mass").table, medium) if asked.by else None
    groups = asked.groups if by_group is not None else ()
    rows = []
    for row in top.itertuples():
        here = (preference.layer == row.layer) & (preference["head"] == row.head)
        cells = [str(row.layer), str(row.head), _with_limits(row), f"{float(preference[here]['mean'].iloc[0]):+.2f}"]
        for group in groups:
            assert by_group is not None
            of_head = by_group[(by_group.layer == row.layer) & (by_group["head"] == row.head)]
            cells += [_with_limits(one) for one in of_head[of_head.group == group].itertuples()] or [""]
        rows.append(tuple(cells))
    return Table(
        ("layer", "head", "mass, all", "preference", *groups),
        tuple(rows),
        f"The {len(rows)} heads with the largest mean mass on the {medium}, with 95 % limits. They are chosen by these"
        " means, and the largest of many means are partly luck: expect somewhat less on other examples.",
    )


def answers_table(answers: Answers) -> Table:
    """The most frequent answers, by group."""
    total: Counter[str] = Counter()
    for counted in answers.by_group.values():
        total.update(counted)
    groups = sorted(answers.by_group)
    common = [text for text, _ in total.most_common(ANSWERS)]
    rows = [(repr(text), *(str(answers.by_group[group][text]) for group in groups)) for text in common]
    other = [
        answers.by_group[group].total() - sum(answers.by_group[group][text] for text in common) for group in groups
    ]
    rows += [("others", *map(str, other))] if any(other) else []
    return Table(("most probable token", *groups), tuple(rows), "What the model says: how many examples of each group.")


def map_verdicts(result: StudyResult, asked: Asked) -> Table:
    """How far the curve with the most relevant first lies below random orders, and whether the map means anything."""
    rows = []
    for by in (None, asked.by) if asked.by else (None,):
        areas = result.mean(by, over="fraction", interval=None)
        below = result.mean(by, number="below_random", over="fraction")
        for group in areas.groups:
            area = areas.table[areas.table.group == group].set_index("order")["mean"]
            count = areas.table[areas.table.group == group]["count"].max()
            of_map = below.table[(below.table.group == group) & (below.table.order == "most relevant first")]
            limits = of_map.iloc[0] if len(of_map) else None
            distance = "" if limits is None else f"{limits['mean']:+.3f}" + _interval(limits)
            random = f"{area['random order']:.3f}" if "random order" in area else ""
            first = f"{area['most relevant first']:.3f}"
            rows.append((group, str(count), first, random, distance, _verdict(limits)))
    return Table(
        ("group", "examples", "mean along the curve, map", "random", "below random, 95 %", "in words"),
        tuple(rows),
        "Log-probabilities in nats. Limits that hold 0: no better than chance, however the map looks.",
    )


def _verdict(limits: Any) -> str:
    """What a distance below random orders says of a map."""
    if limits is None:
        return "not known: no random orders were drawn"
    if limits.low != limits.low:
        return "not known of one example"
    if limits.low > 0:
        return "the map finds what the answer needs"
    if limits.high < 0:
        return "worse than chance: the answer needs what the map calls irrelevant"
    return "no better than chance"


def _interval(limits: Any) -> str:
    return "" if limits.low != limits.low else f" [{limits.low:+.3f}, {limits.high:+.3f}]"


def significant(found: analysis.GroupDifferences, medium: str | None) -> Table:
    """The rows that differ, corrected, the largest differences first."""
    rows = found.significant()
    if medium is not None and "modality" in rows.columns:
        rows = rows[rows.modality == medium]
    labels = [name for name in found.labels if name != "modality"]
    cells = [
        (*(str(getattr(row, label)) for label in labels), f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
         f"{row.adjusted_p_value:.3g}", str(row.count))
        for row in rows.head(HEADS).itertuples()
    ]  # fmt: skip
    more = f"; the largest {HEADS} of {len(rows)}" if len(rows) > HEADS else ""
    title = f"{found.names[0]} less {found.names[1]}: where the adjusted p-value is below 0.05{more}"
    return Table((*labels, "difference, 95 %", "adjusted p", "examples"), tuple(cells), title if cells else
                 f"{found.names[0]} less {found.names[1]}: no row has an adjusted p-value below 0.05.")  # fmt: skip


def _of_class(table: pd.DataFrame, medium: str) -> pd.DataFrame:
    return table[table.modality == medium]


def _with_limits(row: Any) -> str:
    return f"{row.mean:.3f}" + ("" if row.low != row.low else f" [{row.low:.3f}, {row.high:.3f}]")
