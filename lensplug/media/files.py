"""A file as users name it: a path, its bytes, a file that is open, or a dictionary of a data set (`path`, `bytes`)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from lensplug.errors import LensplugError

ADDRESS = re.compile(r"^[A-Za-z][\w+.-]+:/|^data:")
"""Two letters at least: one is a drive."""


@dataclass(frozen=True)
class File:
    """A file on disk, or its bytes."""

    content: Path | bytes

    def __str__(self) -> str:
        """As errors name it."""
        return repr(str(self.content)) if isinstance(self.content, Path) else f"the file of {len(self.content)} bytes"

    def begins(self) -> bytes:
        """Its first bytes, by which formats are told."""
        if isinstance(self.content, bytes):
            return self.content[:16]
        with self.content.open("rb") as file:
            return file.read(16)

    def opened(self) -> str | BytesIO:
        """What libraries take."""
        return str(self.content) if isinstance(self.content, Path) else BytesIO(self.content)


def is_file(source: Any) -> bool:
    """Whether this names a file, or is one."""
    return isinstance(source, Mapping | str | os.PathLike | bytes | bytearray | memoryview) or hasattr(source, "read")


def as_file(source: Any, kind: str) -> File:
    """The file that is meant, and that it is there.

    Args:
        source: For which `is_file` is true. A file that is open is read from its beginning.
        kind: What it should be, such as "a picture".

    Raises:
        LensplugError: If there is no such file, it is a folder or empty, or it is an address on the net.
    """
    if isinstance(source, Mapping):
        parts = [part for part in (source.get("bytes"), source.get("path")) if part is not None]
        if not parts:
            raise LensplugError(f"{kind} is a dictionary of {sorted(map(str, source))}, expected path or bytes in it.")
        source = parts[0]
    if hasattr(source, "read"):
        source = _all_of(source, kind)
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise LensplugError(f"the file for {kind} is empty: it has no bytes.")
        return File(bytes(source))
    if ADDRESS.match(os.fspath(source)):
        raise LensplugError(
            f"{_short(os.fspath(source))!r} is an address, and files are wanted: download it first, and give its"
            " path (or its bytes)."
        )
    if source == "":
        raise LensplugError(f"the path of {kind} is empty.")
    path = Path(source).expanduser()
    if path.is_dir():
        raise LensplugError(f"{str(path)!r} is a folder, expected a file that is {kind}.")
    if not path.is_file():
        raise LensplugError(f"there is no file {_short(str(path))!r}.")
    if path.stat().st_size == 0:
        raise LensplugError(f"{str(path)!r} is an empty file, expected {kind}.")
    return File(path)


def _all_of(source: Any, kind: str) -> bytes:
    """The whole of a file that is open, which is left where it stood."""
    movable = hasattr(source, "seekable") and source.seekable()
    before = source.tell() if movable else 0
    if movable:
        source.seek(0)
    content = source.read()
    if movable:
        source.seek(before)
    if not isinstance(content, bytes):
        raise LensplugError(f"the file for {kind} is open as text: open it with 'rb'.")
    return content


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."
