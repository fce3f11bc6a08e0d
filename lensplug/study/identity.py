"""What a study is a study of: the model, its weights and how it is loaded. Written once, never changed.

A hub model is identified by its commit, a folder by what is in it (configuration, index or headers of the weights,
processor), wherever it lies; a function that loads a model by its name. The fingerprint of the weights that ran is
also in every chunk (`provenance`), and other weights are refused there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lensplug
from lensplug.errors import LensplugError
from lensplug.study.storage import Storage

FORMAT = 1
"""The version of a study's files: raised when they cannot be read as those of the last."""
FILE = "study.json"
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""A function that returns a lens: "my_models:load_mine"."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.gguf")
SAMPLES, SAMPLE_BYTES = 64, 2**16
"""Pieces of a large file that are read, evenly spaced: its beginning (names and shapes) and some of its numbers."""


@dataclass(frozen=True)
class Identity:
    """The model of a study, and how its examples are divided into chunks."""

    model: str
    """A name of the hub, a folder, or a function ("module:function"); for people, and to load it."""
    checkpoint: Mapping[str, str]
    """What identifies weights, configuration and processor."""
    load: Mapping[str, Any]
    """Options of `lensplug.load`: dtype, engine, process_weights, revision, ..."""
    chunk: int
    """Examples in a file."""
    format: int = FORMAT
    lensplug: str = field(default_factory=lambda: lensplug.__version__)
    """The version that began it."""

    @property
    def name(self) -> str:
        """What the model is called in results."""
        return self.model.rstrip("/").rpartition("/")[2] if self.checkpoint.get("kind") == "folder" else self.model

    def key(self) -> Mapping[str, Any]:
        """What must be the same for two studies to be one."""
        where = {} if self.checkpoint["kind"] == "folder" else {"model": self.model}
        return {**where, **self.checkpoint, **self.load, "chunk": self.chunk}


def identity_of(model: str | Path, load: Mapping[str, Any], chunk: int) -> Identity:
    """The identity of a new study.

    Args:
        model: As `Study` takes it.
        load: Options for `lensplug.load`.
        chunk: Examples in a file.

    Raises:
        LensplugError: If there is no such model.
    """
    text, options = str(model), {name: _plain(name, value) for name, value in load.items() if value is not None}
    if FUNCTION.fullmatch(text):
        return Identity(text, {"kind": "function"}, options, chunk)
    from lensplug.loading.folder import found
    from lensplug.loading.options import known_dtype

    known_dtype(options.get("dtype", "auto"))
    path = Path(found(model)).expanduser()
    if path.is_dir():
        return Identity(str(path.resolve()), _checkpoint_of_folder(path), options, chunk)
    return Identity(text, {"kind": "hub", "commit": _commit(text, options.get("revision"))}, options, chunk)


def read_identity(storage: Storage) -> Identity | None:
    """The identity of the study in a folder; None where there is none.

    Raises:
        LensplugError: If it is broken, of another format, or the folder holds something else.
    """
    try:
        written = json.loads(storage.read(FILE))
    except FileNotFoundError:
        others = storage.names("")
        if others:
            raise LensplugError(
                f"{storage.place!r} is no study: it has no {FILE}, but {', '.join(map(repr, others[:3]))}. Give a"
                " folder that is empty or not there yet."
            ) from None
        return None
    except ValueError as error:
        raise LensplugError(
            f"{FILE} of {storage.place!r} is broken: {error}. It is never changed: restore it."
        ) from error
    if not isinstance(written, dict):
        raise LensplugError(f"{FILE} of {storage.place!r} is broken. It is never changed: restore it.")
    if written.get("format") != FORMAT:
        raise LensplugError(
            f"the study {storage.place!r} has format {written.get('format')!r}, written by lensplug"
            f" {written.get('lensplug')}; this version reads format {FORMAT}: use the other version."
        )
    try:
        identity = Identity(**written)
        identity.key()
    except (TypeError, KeyError, AttributeError) as error:
        raise LensplugError(
            f"{FILE} of {storage.place!r} is broken ({error}). It is never changed: restore it."
        ) from error
    return identity


def write_identity(storage: Storage, identity: Identity) -> Identity:
    """Write it, or return that of who was first."""
    content = json.dumps(asdict(identity), indent=1).encode()
    if storage.create(FILE, content):
        return identity
    existing = read_identity(storage)
    assert existing is not None
    refuse_other(storage, existing, identity)
    return existing


def refuse_other(storage: Storage, existing: Identity, asked: Identity) -> None:
    """Refuse a study of something else, by the fields that differ.

    Raises:
        LensplugError: If they differ.
    """
    before, now = existing.key(), asked.key()
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        fields = "; ".join(f"{name}: {before.get(name)!r} there, {now.get(name)!r} asked for" for name in differing)
        raise LensplugError(
            f"the study {storage.place!r} is of something else. What differs is {fields}. Open it with what it is of,"
            f" lensplug.Study({storage.place!r}), or give another folder."
        )


def hash_of(value: Any) -> str:
    """Sixteen characters for a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _plain(name: str, value: Any) -> Any:
    """An option as JSON; dtypes by their names."""
    if type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")
    if value is not None and not isinstance(value, str | bool | int | float):
        raise LensplugError(f"{name} is a {type(value).__name__}, and a study writes it into a file: give a text.")
    return value.removeprefix("torch.") if isinstance(value, str) else value


def _checkpoint_of_folder(folder: Path) -> dict[str, str]:
    """Hashes of a model's folder: pieces of weight files, and every small file."""
    weights = {path for pattern in WEIGHTS for path in folder.glob(pattern)}
    small = {path for pattern in ("*.json", "*.jinja", "*.txt", "*.model") for path in folder.glob(pattern)} - weights
    configuration = {path for path in small if path.name in ("config.json", "generation_config.json")}
    return {
        "kind": "folder",
        "weights": _hash_of_files(weights),
        "configuration": _hash_of_files(configuration),
        "processor": _hash_of_files(small - configuration),
    }


def _hash_of_files(paths: Iterable[Path]) -> str:
    """One hash for several files.

    Raises:
        LensplugError: If one cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        try:
            _count_in(digest, path)
        except OSError as error:
            raise LensplugError(
                f"{path.name!r} of the model's folder cannot be read: {error.strerror or error}. Restore it, or take it"
                " out of the folder."
            ) from error
    return digest.hexdigest()[:16]


def _count_in(digest: Any, path: Path) -> None:
    """Add the name and size of a file, and its content or pieces of it."""
    size = path.stat().st_size
    digest.update(f"{path.name} {size} ".encode())
    with open(path, "rb") as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
            return
        for index in range(SAMPLES):
            file.seek(index * (size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))


def _commit(name: str, revision: str | None) -> str:
    """The commit of a model of the hub, as transformers finds it; its configuration is fetched if it is not here.

    Raises:
        LensplugError: If it is not here and cannot be fetched.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        path = cached_file(name, "config.json", revision=revision)
    except OSError as error:
        raise LensplugError(f"{name!r} could not be found: {error}") from error
    commit = extract_commit_hash(path, None)
    return commit or f"unknown, revision {revision or 'main'}"
