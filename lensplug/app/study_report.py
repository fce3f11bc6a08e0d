"""The report on a study, and on two that are compared: one page for all that was asked, done and found.

Used by `lensplug study report` and `Study.report`. Figures are those of `lensplug.views`, and can be drawn separately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from lensplug import views
from lensplug.analysis import GroupDifferences, NeuronActivity
from lensplug.app import study_facts as about
from lensplug.app.study_facts import Asked
from lensplug.app.study_sections import domain_neurons_of, section_of
from lensplug.app.study_tables import Answers, answers_of, significant
from lensplug.errors import LensplugError
from lensplug.files.writable import file_to_write
from lensplug.study import Study, StudyResult
from lensplug.study.measurements import Measurement
from lensplug.study.passes import declared
from lensplug.views.page.page import Page, Part, Section
from lensplug.views.static.library import need_matplotlib

COMPARED: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    "head_specialization": ("Which heads look otherwise at the {}", ("mass",), None),
    "logit_lens": ("At which layers answers settle otherwise", ("settled",), None),
    "modality_ablation": ("What the {} is used for otherwise", ("right", "changed"), None),
    "grounding": ("What the {} adds otherwise", ("total",), None),
    "neuron_activity": ("Which neurons fire in the other", (), None),
    "deletion_curve": ("Whether the map finds more of what the answer needs", ("below_random",), "fraction"),
}
"""Analysis -> title, with the medium; the numbers that two studies are compared by; what they are averaged over."""


Found: TypeAlias = Sequence[tuple[Measurement, StudyResult | LensplugError]]
"""Measurements with their results, or why there are none."""


def study_report(
    study: Study,
    *,
    by: str | None = None,
    other: Study | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Page:
    """The page of a study, with what is done so far.

    Args:
        study: The study.
        by: The column of its examples whose values are groups; by default the first with two to eight values.
        other: Another study of the same measurements (another checkpoint): the differences are shown too, over the
            examples that both have.
        progress: Called with a few words before each step.

    Raises:
        LensplugError: If there are no examples, no such column, or the two have no measurement in common.
    """
    asked = about.asked_of(study, by)
    progress("reading what is done")
    results = list(_results(study))
    pairs = [] if other is None else _shared(results, list(_results(other)))
    answers = Answers()
    for _, result in results:
        if isinstance(result, StudyResult) and result.measurement.analysis == "logit_lens":
            answers = answers_of(result, asked)
            break
    sections = [
        about.pictures(asked, answers.by_example),
        about.progress(asked),
        about.failed(asked),
    ]
    lines, dtype = list(about.versions(asked)), ""
    for measurement, result in results:
        progress(f"reading {measurement.name}")
        if isinstance(result, LensplugError):
            sections.append(Section(measurement.name, about.without_paths(str(result))))
            continue
        dtype = dtype or _dtype(result)
        sections.append(section_of(result, asked, answers))
        lines.append(_making(result))
    if other is not None:
        sections += _compared(pairs, (about.name_of(study), about.name_of(other)), asked, progress)
    title = f"Study: {about.name_of(study)}" + (f", compared with {about.name_of(other)}" if other else "")
    facts = about.facts(asked, dtype)
    if other is not None:
        facts += (
            ("Compared with", f"{about.name_of(other)}: {dict(about.facts(about.asked_of(other, by)))['Model']}"),
        )
    return Page(title, facts, tuple(section for section in sections if section), tuple(dict.fromkeys(lines)))


def write_study_report(
    study: Study,
    path: str | Path,
    *,
    by: str | None = None,
    other: Study | None = None,
    static: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Path:
    """Write the page of a study; whether it can be written is found out before anything is read.

    Args:
        study: The study.
        path: The page; one that is there is replaced.
        by: As for `study_report`.
        other: Likewise.
        static: Without scripts, drawn with matplotlib.
        progress: Called with a few words before each step.

    Raises:
        LensplugError: If it cannot be made or written, or matplotlib is needed and not installed.
    """
    if static:
        need_matplotlib()
    target = file_to_write(path)
    page = study_report(study, by=by, other=other, progress=progress)
    if static:
        progress("drawing the pictures")
    return page.save(target, static=static)


def _results(study: Study) -> Iterator[tuple[Measurement, StudyResult | LensplugError]]:
    """Each measurement with its results, or why there are none."""
    for one in declared(study.storage):
        try:
            found = study.result(one.measurement.name)
            next(found.chunks(), None) if found.measurement.way.rows else found.result
            if found.examples.empty:
                raise LensplugError(f"{one.measurement.name!r} has no results yet.")
            yield one.measurement, found
        except LensplugError as error:
            yield one.measurement, error


def _shared(mine: Found, theirs: Found) -> list[tuple[StudyResult, StudyResult]]:
    """The results that two studies have of the same measurements.

    Raises:
        LensplugError: If there are none.
    """
    others = {one.key: result for one, result in theirs}
    pairs = [(result, others[one.key]) for one, result in mine if one.key in others]
    found = [(a, b) for a, b in pairs if isinstance(a, StudyResult) and isinstance(b, StudyResult)]
    if not found:
        raise LensplugError(
            "the two studies have no results of a measurement that they share, with the same options and name: there is"
            " nothing to compare."
        )
    return found


def _compared(
    pairs: Sequence[tuple[StudyResult, StudyResult]],
    names: tuple[str, str],
    asked: Asked,
    progress: Callable[[str], None],
) -> list[Section]:
    """A section for each measurement that two studies share."""
    names = names if len(set(names)) == 2 else ("this", "the other")
    sections = [Section(f"{names[0]} less {names[1]}", _PAIRS)]
    for first, second in pairs:
        progress(f"comparing {first.measurement.name}")
        sections.append(_difference(first, second, names, asked))
    return sections


_PAIRS = (
    "Examples are pairs: each is compared with itself in the other study, and means are over pairs. p-values are those"
    " of permutations of which side is which, corrected with the largest statistic over all rows: among hundreds of"
    " heads, some differ by chance. A difference that is more than chance may still be small: read its interval."
)


def _difference(first: StudyResult, second: StudyResult, names: tuple[str, str], asked: Asked) -> Section:
    title, numbers, over = COMPARED.get(first.measurement.analysis, (first.measurement.analysis, (None,), None))
    name = first.measurement.name
    title = title.format(asked.medium) + (f": {name}" if name != first.measurement.analysis else "")
    if not first.measurement.way.rows:
        neurons = domain_neurons_of(second.result, asked) if isinstance(second.result, NeuronActivity) else None
        text = f"Counts have no examples, and so no intervals. These are the domain neurons of {names[1]}."
        return Section(title, text, () if neurons is None else (views.domain_neurons(neurons),), wide=True)
    try:
        found = [first.compare(second, names=names, number=number, over=over) for number in numbers]
    except LensplugError as error:
        return Section(title, about.without_paths(str(error)))
    return Section(title, "", tuple(part for one in found for part in _parts(one, asked)), wide=True)


def _parts(found: GroupDifferences, asked: Asked) -> list[Part]:
    present = set(found.table.modality) if "modality" in found.table.columns else set()
    medium = asked.medium if asked.medium in present else None
    return [views.group_differences(found, modality=medium), significant(found, medium)]


def _making(result: StudyResult) -> str:
    """How the numbers of a measurement were made."""
    options = ", ".join(f"{name}={value!r}" for name, value in result.measurement.options.items())
    return f"{result.measurement.analysis}({options})" + (
        f" as {result.measurement.name}" if result.measurement.name != result.measurement.analysis else ""
    )


def _dtype(result: StudyResult) -> str:
    if not result.measurement.way.rows:
        return ""
    return next((part.provenance.dtype for _, part in result.chunks()), "")
