"""What a study's page says before any result: what was asked, of how much, how it went, and of which examples.

A page holds no path, host or user: media are called by the names of their files, models by their last name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lensplug.errors import LensplugError
from lensplug.media import load_image
from lensplug.study import Study
from lensplug.study.chunk_files import SUFFIX, parse
from lensplug.study.example_tables import user_columns
from lensplug.study.groups import names_in
from lensplug.study.media import MEDIA, opened
from lensplug.study.passes import Pass, declared, passes
from lensplug.views.page.page import Section
from lensplug.views.page.plain import SmallPictures, Table, small

PATH = re.compile(r"(?:\w+:/)?(?:/[^\s/'\":,]+)+/(?=[^\s/'\":,])|[A-Za-z]:\\(?:[^\s\\'\"]+\\)+")
"""All of a path but the name of its file."""
GROUPS = 8
"""Maximum number of groups that a page tells apart."""
PICTURES = 6
FAILURES = 12
PROMPTS = 4


@dataclass(frozen=True)
class Asked:
    """What a page is about."""

    study: Study
    examples: pd.DataFrame
    by: str | None
    """The column whose values are groups; None where all examples are one."""
    medium: str
    """What most examples have: "image", "video" or "audio"; else "text"."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, in alphabetical order; none where all examples are one."""
        return () if self.by is None else tuple(sorted(set(names_in(self.examples, self.by))))


def asked_of(study: Study, by: str | None) -> Asked:
    """What a study's page is about.

    Args:
        study: The study.
        by: The column of its groups; by default the first that has from two to eight values, or several prompts.

    Raises:
        LensplugError: If there is no such column, it has more values than a page tells apart, or there are no examples.
    """
    examples = study.examples
    if examples.empty:
        raise LensplugError("the study has no examples yet, and so nothing to report: study.add_folder(...).")
    columns = [*user_columns(examples), "prompt"]
    if by is not None and by not in [*columns, "target", "key"]:
        raise LensplugError(f"the examples have no column {by!r}: they have {', '.join(columns)}.")
    if by is not None and examples[by].nunique() > GROUPS:
        raise LensplugError(
            f"{by!r} has {examples[by].nunique()} values, and a page tells {GROUPS} groups apart: choose another"
            f" column. study.result(...).mean(by={by!r}) has the numbers of all of them."
        )
    chosen = by or next((name for name in columns if 1 < examples[name].nunique() <= GROUPS), None)
    kinds = zip(("image", "video", "audio"), MEDIA, strict=True)
    counts = {name: int(examples[kind].map(len).gt(0).sum()) for name, kind in kinds}
    most = max(counts, key=counts.__getitem__)
    return Asked(study, examples, chosen, most if counts[most] else "text")


def name_of(study: Study) -> str:
    """What a study is called: the name of its folder."""
    return study.storage.place.replace("\\", "/").rstrip("/").rpartition("/")[2] or "study"


def facts(asked: Asked, dtype: str = "") -> tuple[tuple[str, str], ...]:
    """The model, the prompts, the groups and how many examples there are.

    Args:
        asked: What the page is about.
        dtype: That of the model that ran, where it is known.
    """
    identity, examples = asked.study.identity, asked.examples
    options = {**identity.load, "dtype": dtype or identity.load.get("dtype", "as in the checkpoint")}
    loaded = ", ".join(f"{name} {value}" for name, value in options.items())
    prompts = examples.prompt.value_counts(sort=False)
    said = [prompt if count == 1 else f"{prompt} ({count})" for prompt, count in prompts.head(PROMPTS).items()]
    more = [f"and {len(prompts) - PROMPTS} more"] if len(prompts) > PROMPTS else []
    found = [("Model", _last(identity.name)), ("Checkpoint", _checkpoint(identity.checkpoint)), ("Loaded", loaded)]
    found += [("Prompt" if len(prompts) == 1 else "Prompts", "; ".join([*said, *more]))]
    if asked.by is not None:
        counts = Counter(names_in(examples, asked.by))
        found += [(f"Groups, by {asked.by}", ", ".join(f"{group} {counts[group]}" for group in sorted(counts)))]
    media = examples.sha256.map(tuple).nunique()
    found += [("Examples", f"{len(examples)}, with {media} different media")]
    return tuple(found)


def progress(asked: Asked) -> Section:
    """How far each pass is, how long an example took, and with which versions."""
    rows = []
    for one, row in zip(passes(asked.study.storage), asked.study.progress().itertuples(), strict=True):
        seconds, tried, machines = _time(asked.study, one)
        waiting = row.examples - row.done - row.failed
        each = f"{seconds / tried:.3g}" if tried else ""
        rows.append((row.measurements, *map(str, (row.done, row.failed, waiting)), each, _duration(seconds), machines))
    never = [one.measurement for one in declared(asked.study.storage)]
    begun = {measurement.key for one in passes(asked.study.storage) for measurement in one.measurements}
    total = str(len(asked.examples))
    rows += [(one.name, "0", "0", total, "", "", "") for one in never if one.key not in begun]
    columns = ("measured", "done", "failed", "to do", "seconds an example", "in all", "machines")
    return Section(
        "What was done",
        "Measurements in one row shared one run of the model for each batch; seconds are those of a batch, divided by"
        " its examples, with reading its media. All that follows is about the examples that are done.",
        (Table(columns, tuple(rows)),),
    )


def failed(asked: Asked) -> Section | None:
    """What failed, by error, each with an example; None where nothing did."""
    failures = asked.study.failures()
    if failures.empty:
        return None
    kinds = [_kind(error_type, error) for error_type, error in zip(failures.error_type, failures.error, strict=True)]
    rows = []
    for _, alike in sorted(failures.groupby(kinds, sort=False), key=lambda item: -len(item[1])):
        first = alike.iloc[0]
        media = ", ".join(_last(str(name)) for kind in MEDIA for name in first[kind])
        rows.append((str(len(alike)), str(first.error_type), without_paths(str(first.error)), media, str(first.prompt)))
    more = len(rows) - FAILURES
    text = (
        "What failed of these examples is in no number below: all of it, or the measurement that the message begins"
        " with. study.retry() tries it again."
    )
    return Section(
        "What failed",
        text + (f" {more} rarer errors are not listed." if more > 0 else ""),
        (Table(("examples", "error", "message of the first", "its media", "its prompt"), tuple(rows[:FAILURES])),),
    )


def pictures(asked: Asked, answers: dict[str, str]) -> Section | None:
    """A few example pictures of each group; None where there are none.

    Args:
        asked: What the page is about.
        answers: Example -> what the model says, where it is known.
    """
    shown = []
    for group_name, row in _spread(asked):
        try:
            picture = load_image(opened(asked.study.storage, row.images[0], row.sha256[0]))
        except LensplugError:  # among the failures, or the files are elsewhere
            continue
        group = [] if asked.by in (None, "prompt") else [group_name]
        prompt = [str(row.prompt)] if asked.examples.prompt.nunique() > 1 else []
        answer = [f"answers {answers[row.id]!r}"] if row.id in answers else []
        shown.append((small(picture), (*group, *prompt, *answer)))
        if len(shown) == PICTURES:
            break
    if not shown:
        return None
    return Section("Some of the examples", "", (SmallPictures(tuple(shown)),))


def without_paths(text: str) -> str:
    """A text with the last names of the paths in it."""
    return PATH.sub("", text)


def _spread(asked: Asked) -> list[tuple[str, pd.Series]]:
    """Groups and examples with pictures, one of each group in turn."""
    with_picture = asked.examples[asked.examples.images.map(len) > 0]
    names = names_in(with_picture, asked.by) if asked.by else "all"
    groups = pd.Series(names, index=with_picture.index, dtype=object)
    turns = pd.DataFrame({"turn": groups.groupby(groups).cumcount(), "group": groups})
    order = turns.sort_values(["turn", "group"]).index[: 4 * PICTURES]
    return [(groups[index], with_picture.loc[index]) for index in order]


def _time(study: Study, one: Pass) -> tuple[float, int, str]:
    """Seconds in all, of how many examples, on how many machines."""
    seconds, tried, nodes = 0.0, 0, set()
    for file in sorted(one.done(study.storage)):
        name = f"{one.folder}/{file}{SUFFIX}"
        rows = parse(study.storage.read(name), name, ["seconds", "node"])
        seconds, tried = seconds + sum(rows["seconds"].to_pylist()), tried + len(rows)
        nodes |= set(rows["node"].to_pylist())
    return seconds, tried, str(len(nodes) or "")


def _kind(error_type: str, error: str) -> str:
    """What errors of one kind share: their words without names and numbers."""
    return error_type + re.sub(r"'[^']*'|\"[^\"]*\"|[0-9a-f]{8,}|\d+", "", without_paths(error))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _checkpoint(checkpoint: object) -> str:
    assert isinstance(checkpoint, dict)
    kind = checkpoint["kind"]
    rest = ", ".join(f"{name} {value}" for name, value in checkpoint.items() if name != "kind")
    return {"hub": f"of the hub, {rest}", "folder": f"a folder: {rest}", "function": "what the function loads"}[kind]


def _last(name: str) -> str:
    """The last name of a path; names of the hub, with one slash, stay."""
    return name.rpartition("/")[2] if name.count("/") > 1 or name.startswith("/") else name


def versions(asked: Asked) -> Sequence[str]:
    """A line for each set of versions that passes were made with."""
    lines = [", ".join(f"{name} {number}" for name, number in one.versions.items())
             for one in passes(asked.study.storage)]  # fmt: skip
    return list(dict.fromkeys(lines))
