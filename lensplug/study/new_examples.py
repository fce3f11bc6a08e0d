"""Examples that are to be added to a study: from folders, tables and `analysis.Example`.

An example is identified by its prompt, the bytes of its media and a key of the user's. Files are read where they are,
and their bytes must then be those that were added (SHA-256); what is in memory is written into the study (`media/`).
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lensplug.analysis.interventions.ablation_run import Example
from lensplug.errors import LensplugError, LensplugWarning
from lensplug.study.media import MEDIA, Medium, stored
from lensplug.study.storage import Storage
from lensplug.validation.arguments import described

KINDS = {"image": "images", "images": "images", "video": "videos", "videos": "videos", "audio": "audio"}
"""Column of a manifest -> what `lens.prepare` calls it."""
RESERVED = {
    *("id", "chunk", "part", "prompt", "images", "videos", "audio", "media", "sha256", "size", "target", "key"),
    *("pass", "error", "error_type", "attempts", "seconds", "node"),
}
"""Columns that a study writes itself."""


@dataclass(frozen=True)
class NewExample:
    """An example that is to be added."""

    prompt: str
    media: Mapping[str, Sequence[Medium]]
    """"images", "videos" and "audio" -> files and what is in memory."""
    target: str | None = None
    key: str | None = None
    """Tells apart examples of one prompt and one picture."""
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what a table cannot hold.

        Raises:
            LensplugError: If a column has a name of the study's own, or a value is no number or text.
        """
        for name, value in self.columns.items():
            if name in RESERVED:
                raise LensplugError(f"the column {name!r} has a name that a study uses itself: rename it.")
            if not (value is None or np.ndim(value) == 0) or isinstance(value, dict):
                raise LensplugError(f"the column {name!r} has the value {value!r}, expected a number or a text.")
        texts = {"prompt": self.prompt, "target": self.target, "key": self.key, **self.columns}
        files = [("the name of a file", medium.name) for media in self.media.values() for medium in media]
        for name, text in (*texts.items(), *files):
            if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
                raise LensplugError(f"{name} is {text!r}, which is not UTF-8 and cannot be kept in a table: rename it.")

    @property
    def id(self) -> str:
        """What identifies it."""
        hashes = {kind: [medium.sha256 for medium in self.media.get(kind, ())] for kind in MEDIA}
        content = json.dumps([self.prompt, hashes, self.key], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:20]

    def stored_in(self, storage: Storage) -> tuple[NewExample, list[str]]:
        """The example with its media on disk, none in memory; and the files that were written for it."""
        written = [medium.name for media in self.media.values() for medium in media if medium.store(storage)]
        media = {kind: [replace(one, content=None) for one in of_kind] for kind, of_kind in self.media.items()}
        return replace(self, media=media), written

    @property
    def size(self) -> int:
        """Roughly how long its prompt is: examples of like size are run together."""
        return sum(medium.size for media in self.media.values() for medium in media)


def from_folder(
    folder: str | Path, prompt: str | Sequence[str], group: str, suffixes: Mapping[str, str]
) -> list[NewExample]:
    """The media files of a folder, with one or several prompts each.

    Args:
        folder: Its subfolders are groups; where it has none, its own name is the only group.
        prompt: The prompt, or several.
        group: What the column of the groups is called.
        suffixes: Suffix of a file -> "images", "videos" or "audio".

    Raises:
        LensplugError: If there is no such folder, or no media file in it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise LensplugError(f"{str(folder)!r} is no folder.")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    examples: list[NewExample] = []
    unreadable: list[str] = []
    for path in sorted(Path(directory) / name for directory, _, names in os.walk(root) for name in names):
        kind = suffixes.get(path.suffix.lower())
        inside = path.relative_to(root).parts
        if kind is None or any(part.startswith(".") for part in inside) or _is_special(path):
            continue
        try:
            medium = stored(path, kind)
        except LensplugError as error:
            unreadable.append(str(error))
            continue
        examples += [
            NewExample(text, {kind: [medium]}, columns={group: inside[0] if len(inside) > 1 else root.resolve().name})
            for text in prompts
        ]
    if not prompts:
        raise LensplugError("prompt is an empty list: give at least one.")
    if unreadable:
        # It has no bytes by which it would be known: it is no example until it can be read.
        warnings.warn(
            f"{len(unreadable)} files of {str(folder)!r} are left out: {' '.join(unreadable[:3])} Add the folder again"
            " when they can be.",
            LensplugWarning,
            stacklevel=4,
        )
    if not examples:
        raise LensplugError(
            f"{str(folder)!r} has no images, videos or sounds: taken are files that end in"
            f" {', '.join(sorted(suffixes))}."
        )
    return _with_keys(examples)


def _is_special(path: Path) -> bool:
    """Whether it is there and no regular file: a folder, a pipe."""
    try:
        return path.exists() and not path.is_file()
    except OSError:  # a link to itself
        return False


def _with_keys(examples: Sequence[NewExample]) -> list[NewExample]:
    """Copies of a picture under other names are examples of their own, told apart by where they are.

    A file and links to it are at one place, and one example of a group.
    """
    seen: set[str] = set()
    told_apart: dict[tuple[str, str, str], NewExample] = {}
    for example in examples:
        where = " ".join(medium.name for media in example.media.values() for medium in media)
        place = (example.prompt, where, str(example.columns))
        if place not in told_apart:
            told_apart[place] = replace(example, key=where) if example.id in seen else example
        seen.add(example.id)
    return list(told_apart.values())


def from_tables(tables: Iterable[pd.DataFrame], folder: Path, prompt: str | None) -> Iterator[NewExample]:
    """The rows of manifests, one after another.

    Args:
        tables: Columns `prompt`, `image(s)`, `video(s)`, `audio` (a path or a list of paths, or what is in memory),
            `target`, `key`; all others are kept as they are.
        folder: What relative paths are relative to.
        prompt: The prompt of all examples, where there is no such column.

    Raises:
        LensplugError: If there is no prompt, or a file is not there.
    """
    for table in tables:
        yield from _of_table(table, folder, prompt)


def _of_table(table: pd.DataFrame, folder: Path, prompt: str | None) -> Iterator[NewExample]:
    if "prompt" not in table.columns and prompt is None:
        raise LensplugError(
            f"there is no column 'prompt' among {', '.join(map(repr, table.columns))}: add one, or give prompt=."
        )
    others = [name for name in table.columns if name not in {*KINDS, "prompt", "target", "key"}]
    for number, row in enumerate(table.to_dict("records")):
        media: dict[str, list[Medium]] = {}
        for column, kind in KINDS.items():
            if column in row:
                media.setdefault(kind, []).extend(stored(one, kind, folder) for one in _listed(row[column], kind))
        text = row.get("prompt", prompt)
        if not isinstance(text, str):
            raise LensplugError(f"row {number} has the prompt {text!r}, expected a text.")
        yield NewExample(
            text,
            media,
            target=_text_or_none(row.get("target")),
            key=_text_or_none(row.get("key")),
            columns={str(name): row[name] for name in others},
        )


def from_examples(examples: Any, columns: Mapping[str, Any]) -> list[NewExample]:
    """Examples as the analyses take them.

    Raises:
        LensplugError: If they are no examples, an answer is not a text, or a column has another length.
    """
    if not isinstance(examples, list | tuple) or not all(isinstance(one, Example) for one in examples):
        raise LensplugError(
            f"examples is {described(examples)}, expected a CSV, JSONL or Parquet file, a DataFrame, a"
            " datasets.Dataset, or a list of analysis.Example."
        )
    for name, values in columns.items():
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise LensplugError(f"the column {name!r} is {described(values)}, expected a list with an entry for each.")
        if len(values) != len(examples):
            raise LensplugError(f"the column {name!r} has {len(values)} entries for {len(examples)} examples.")
    new = []
    for index, example in enumerate(examples):
        if not isinstance(example.answer, str):
            raise LensplugError(f"the answer {example.answer!r} is not a text, and a study keeps it in a table.")
        media = {kind: [stored(one, kind) for one in getattr(example, kind)] for kind in MEDIA}
        own = {name: values[index] for name, values in columns.items()}
        new.append(NewExample(example.text, media, target=example.answer, columns=own))
    return new


def _listed(value: Any, kind: str) -> list[Any]:
    from lensplug.media import listed

    if value is None or (isinstance(value, float) and pd.isna(value)) or (isinstance(value, str) and not value):
        return []
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError):  # a name that begins so
            value = json.loads(value)  # a CSV has no lists
    if isinstance(value, np.ndarray) and value.dtype == object:
        return list(value)  # a list of paths, as pandas reads it from Parquet
    return [value] if isinstance(value, dict) else listed(value, kind)


def _text_or_none(value: Any) -> str | None:
    return None if value is None or (not isinstance(value, str) and pd.isna(value)) else str(value)
