"""The sections of a study's page, one for each measurement: figures with intervals, tables, and what they mean.

Means are read chunk by chunk, and no example's numbers stay in memory, but for two small ones of modality ablation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lensplug import analysis, views
from lensplug.analysis.group_means import GroupMeans
from lensplug.app.study_facts import Asked
from lensplug.app.study_tables import Answers, answers_table, map_verdicts, significant, top_heads
from lensplug.errors import LensplugError
from lensplug.study import StudyResult
from lensplug.views.page.page import Part, Section
from lensplug.views.page.plain import Table

CHANGES = 10
"""Changes of answers that are listed."""


def section_of(result: StudyResult, asked: Asked, answers: Answers) -> Section:
    """The section of a measurement.

    Args:
        result: Of the study.
        asked: What the page is about.
        answers: What the model says, where it is known.

    Raises:
        LensplugError: If it has no results.
    """
    made: dict[str, Callable[[StudyResult, Asked, Answers], Section]] = {
        "head_specialization": _heads,
        "logit_lens": _settled,
        "modality_ablation": _ablation,
        "grounding": _grounding,
        "neuron_activity": _neurons,
        "deletion_curve": _deletion,
    }
    section = made.get(result.measurement.analysis, _means)(result, asked, answers)
    name, of_analysis = result.measurement.name, result.measurement.analysis
    return section if name == of_analysis else replace(section, title=f"{section.title}: {name}")


def _heads(result: StudyResult, asked: Asked, answers: Answers) -> Section:
    by_layer = result.mean(asked.by, number="mass", over="head")
    medium = _class(by_layer, asked)
    preference = result.mean(asked.by, number="preference")
    parts: list[Part] = [
        views.group_means(by_layer, modality=medium),
        views.group_means(preference, modality=medium),
        top_heads(result, asked, medium),
    ]
    parts += _two_groups(result, asked, medium=medium, number="mass")
    return Section(
        f"Which heads look at the {medium}",
        f"Mass is the fraction of a head's attention that lies on the {medium}; preference is how far that is beyond"
        f" the {medium}'s share of the positions, in nats (0: uniform attention). Bands and limits say how well the"
        " mean over examples like these is known: media are drawn again, all questions about one together. They do not"
        " say what a head moves, nor whether the answer depends on it: ablate or patch it to see.",
        tuple(parts),
        wide=True,
    )


def _settled(result: StudyResult, asked: Asked, answers: Answers) -> Section:
    settled = result.mean(asked.by, number="settled")
    if set(settled.labels) != {"entry"}:
        followed = result.mean(asked.by, number="target_log_probability")
        return Section("The logit lens, layer by layer", _LENS, (views.group_means(followed),), wide=True)
    rows = []
    for group in settled.groups:
        table = settled.table[settled.table.group == group]
        half = table[table["mean"] >= 0.5]
        rows.append((group, str(table["count"].max()), half.entry.iloc[0] if len(half) else "never",
                     f"{table['mean'].iloc[-1]:.0%}"))  # fmt: skip
    medians = Table((asked.by or "group", "examples", "half have settled after layer", "settled at the end"),
                    tuple(rows))  # fmt: skip
    return Section(
        "At which layer answers settle",
        f"{_LENS} An answer has settled at the first layer from which it stays the most probable token to the end.",
        (views.settled_layers(settled), medians, answers_table(answers)),
        wide=True,
    )


_LENS = (
    "The logit lens reads the residual stream after each layer as if it were the last. Where it does not show an"
    " answer, the answer may still be there in another form."
)


def _ablation(result: StudyResult, asked: Asked, answers: Answers) -> Section:
    small: list[Any] = [_without_texts(part) for _, part in result.chunks()]
    whole = analysis.ModalityAblation.combine(small) if len(small) > 1 else small[0]
    scores = {name: whole.per_class(name) for name in ("with", "without", "control")}
    f1 = [
        (name, str(int(scores["with"].support[name])), *(f"{scores[one].f1[name]:.2f}" for one in scores))
        for name in whole.classes
    ]
    moved = whole.transitions("without").stack()  # noqa: PD013
    moved = moved[[first != last for first, last in moved.index]].nlargest(CHANGES)
    changes = tuple((first, last, str(count)) for (first, last), count in moved.items() if count)
    changed = result.mean(asked.by, number="changed")
    parts: list[Part] = [
        views.group_means(result.mean(asked.by, number="right")),
        views.group_means(replace(changed, table=changed.table[changed.table.condition != "with"])),
        views.modality_ablation(whole),
        Table(("class", "examples", "F1 with", "F1 without", "F1 control"), tuple(f1), "F1 by class."),
    ]
    if changes:
        parts.append(Table((f"with the {whole.modality}", "without it", "examples"), changes, "Which answers change."))
    return Section(
        f"What the {whole.modality} is used for",
        f"Each prompt is answered as it is, and with the {whole.modality} ablated ({whole.method}); as a control, with"
        f" as many positions of something else ablated. If more answers change without the {whole.modality} than under"
        " the control, it is used. A prompt without its medium is unlike what the model was trained on, so that a"
        " change can also come from that; an unchanged answer does not prove that the medium was not read. Where all n"
        " examples of a group agree, limits have no width, and yet up to 3 in n of others may differ.",
        tuple(parts),
        wide=True,
    )


def _without_texts(part: Any) -> Any:
    """An ablation with what is counted alone, so that large studies fit into memory."""
    count = len(part.examples)
    return replace(part, examples=("",) * count, top_texts=(("",) * count,) * len(part.top_texts), scores=None)


def _grounding(result: StudyResult, asked: Asked, answers: Answers) -> Section:
    means = [result.mean(asked.by, number=number) for number in ("total", "mean_of_tokens")]
    parts: list[Part] = [views.group_means(means[0])]
    if not means[0].table["mean"].equals(means[1].table["mean"]):
        parts.append(views.group_means(means[1]))
    return Section(
        f"What the {asked.medium} adds to the answers",
        f"The log-probability of the given answer with the {asked.medium} minus that with a blank one, in nats: above"
        " 0 the medium makes the answer more probable (1 nat: 2.7 times). A mean near 0 may hide answers that it helps"
        " and others that it harms.",
        tuple(parts),
        wide=True,
    )


def _deletion(result: StudyResult, asked: Asked, answers: Answers) -> Section:
    relevance = {**result.measurement.way.defaults, **result.measurement.options}["relevance"]
    curves = result.mean(asked.by)
    parts: list[Part] = [views.group_means(curves), map_verdicts(result, asked)]
    if "random order" in set(curves.table.order):
        below = result.mean(asked.by, number="below_random", over="fraction")
        parts.append(views.group_means(below))
    return Section(
        "Whether the map finds what the answer needs",
        f"Positions are deleted in the order of a map ({relevance}), and in random orders: hidden from attention, and"
        " their embeddings replaced by the mean. Where the map is right, the answer's log-probability falls early with"
        " the most relevant first, and late with the least relevant first. The distance below random orders is the area"
        " between the curves: the mean difference along them, in nats. A prompt with half an image is unlike what the"
        " model was trained on, which is the same in all orders as far as they delete as many positions.",
        tuple(parts),
        wide=True,
    )


def _neurons(result: StudyResult, asked: Asked, answers: Answers) -> Section:
    activity: analysis.NeuronActivity = result.result
    title = "Which neurons fire where"
    text = (
        "A neuron fires at a position where its pre-activation is positive. That it fires in one domain alone does not"
        " say that answers need it: deactivate it, against as many random neurons of the same layers."
    )
    neurons = domain_neurons_of(activity, asked)
    if neurons is None:
        return Section(title, text, (views.neuron_activity(activity),), wide=True)
    of_each = neurons.count.sum(dim=1).tolist()
    never = int((activity.fired.sum(dim=(0, 1)) == 0).sum())
    rows = tuple((name, str(count)) for name, count in zip(neurons.domains, of_each, strict=True))
    return Section(
        title,
        f"{text} With few positions in a domain, low entropies are also chance: compare with domains given at random.",
        (
            views.domain_neurons(neurons),
            views.neuron_activity(activity),
            Table(
                ("domain", "neurons"), rows, f"Neurons of each domain; {never} of {neurons.entropy.numel()} never fire."
            ),
        ),
        wide=True,
    )


def domain_neurons_of(activity: analysis.NeuronActivity, asked: Asked) -> analysis.DomainNeurons | None:
    """The domain neurons of a study at positions of its medium; None where there is one domain."""
    if len(activity.domains) < 2:
        return None
    modality: Any = asked.medium if asked.medium in activity.modalities else None
    return analysis.domain_neurons(activity, modality=modality)


def _means(result: StudyResult, asked: Asked, answers: Answers) -> Section:
    """Of an analysis that has no section of its own."""
    return Section(result.measurement.analysis, "", (views.group_means(result.mean(asked.by)),), wide=True)


def _two_groups(result: StudyResult, asked: Asked, *, medium: str, number: str) -> list[Part]:
    """Where there are two groups, their difference."""
    if asked.by is None or len(asked.groups) != 2:
        return []
    try:
        found = result.difference(*asked.groups, by=asked.by, number=number)
    except LensplugError:  # one of them failed altogether
        return []
    return [views.group_differences(found, modality=medium), significant(found, medium)]


def _class(means: GroupMeans, asked: Asked) -> str:
    """The class of positions that figures show."""
    present = set(means.table.modality)
    return asked.medium if asked.medium in present else sorted(present)[0]
