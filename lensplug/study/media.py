"""The media of a study's examples: files that stay where they are, and what was in memory, written into the study."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from lensplug.errors import LensplugError
from lensplug.study.storage import Storage

MEDIA = ("images", "videos", "audio")
"""The kinds, as `lens.prepare` calls them."""
INSIDE = "media/"
"""How the names of media begin that are in the study."""
SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"), "images"),
    **dict.fromkeys((".mp4", ".mkv", ".webm", ".mov", ".avi"), "videos"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".mp3", ".m4a"), "audio"),
}
"""What a file of a folder is taken for."""


Media: TypeAlias = Mapping[str, Sequence[Any]]
"""Of an example: a kind -> its files, or their bytes."""


def by_kind(media: Sequence[Media]) -> dict[str, list[list[Any]]]:
    """The media of a batch as `lens.prepare` takes them."""
    kinds = {kind for of_example in media for kind, files in of_example.items() if files}
    return {kind: [list(of_example.get(kind, ())) for of_example in media] for kind in sorted(kinds)}


@dataclass(frozen=True)
class Medium:
    """One picture, video or sound of a new example."""

    name: str
    """The path of its file, or its name in the study."""
    sha256: str
    size: int
    """Roughly how many positions it takes, for its kind."""
    content: bytes | None = None
    """What is to be written into the study."""

    def store(self, storage: Storage) -> bool:
        """Write it into the study, unless it is a file elsewhere or is there; whether it was written."""
        return self.content is not None and storage.create(self.name, self.content)


def stored(source: Any, kind: str, folder: Path = Path()) -> Medium:
    """A medium as a study keeps it.

    Args:
        source: A path, or whatever `lens.prepare` takes as one picture, video or sound.
        kind: "images", "videos" or "audio".
        folder: What relative paths are relative to.

    Raises:
        LensplugError: If there is no such file, or it cannot be kept.
    """
    if isinstance(source, dict) and source.get("bytes") is None and source.get("path"):
        source = source["path"]  # of a data set, whose files are here
    if isinstance(source, str | Path):
        try:
            path = (folder / Path(source).expanduser()).resolve()
            if path.exists() and not path.is_file():
                raise LensplugError(f"{str(source)!r} is no regular file: give the file of a picture, video or sound.")
            content = path.read_bytes()
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a link to itself, a user without a home
            raise LensplugError(f"{str(source)!r} cannot be read: {getattr(error, 'strerror', error)}.") from error
        return Medium(str(path), _sha256(content), _size(content, kind))
    content, suffix = _in_memory(source, kind)
    digest = _sha256(content)
    return Medium(f"{INSIDE}{digest[:32]}{suffix}", digest, _size(content, kind), content)


def opened(storage: Storage, name: str, sha256: str) -> bytes:
    """The bytes of a medium, which are those that were added.

    Raises:
        LensplugError: If they cannot be read, or are others.
    """
    try:
        content = storage.read(name) if name.startswith(INSIDE) else Path(name).read_bytes()
    except OSError as error:
        raise LensplugError(f"{name!r} cannot be read: {error.strerror or error}.") from error
    if _sha256(content) != sha256:
        raise LensplugError(
            f"{name!r} has changed since it was added (SHA-256 {_sha256(content)[:12]}..., then {sha256[:12]}...):"
            " restore it, or add it under another name as a new example."
        )
    return content


def _in_memory(source: Any, kind: str) -> tuple[bytes, str]:
    """What is in memory as the bytes of a file, without loss; and the suffix of its name."""
    if isinstance(source, dict) and source.get("bytes") is not None:
        return source["bytes"], Path(str(source.get("path") or "")).suffix
    if isinstance(source, bytes):
        return source, ""
    from lensplug.media import load_image, load_sound

    buffer = io.BytesIO()
    if kind == "images":
        load_image(source).save(buffer, "PNG")
        return buffer.getvalue(), ".png"
    if kind == "audio":
        import soundfile

        sound = load_sound(source)
        samples = np.asarray(sound.waveform, dtype=np.float32)
        soundfile.write(buffer, samples, sound.sampling_rate, format="WAV", subtype="FLOAT")
        return buffer.getvalue(), ".wav"
    raise LensplugError("a video in memory cannot be kept in a study: write it to a file, and give the file.")


def _size(content: bytes, kind: str) -> int:
    """Pixels, or bytes of a recording: what is broken is found when it is run."""
    if kind != "images":
        return len(content)
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            return int(width) * int(height)
    except Exception:
        return 0


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
