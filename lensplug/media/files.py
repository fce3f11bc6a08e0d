"""A file as users name it: a path, its bytes, a file that is open, or a dictionary of a data set (`path`, `bytes`)."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

from lensplug.errors import LensplugError
from lensplug.media.limits import in_words, memory_limit, refuse_beyond_limit

ADDRESS = re.compile(r"^[A-Za-z][\w+.-]+:/|^data:")
"""Two letters at least: one is a drive."""
READING = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
"""Open flags: opening a FIFO does not block; regular files are not affected."""
CHUNK = 2**24
"""Bytes that are read at a time of what may have no end."""
KINDS = {stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}


@dataclass(frozen=True)
class File:
    """A file that is open, at its beginning; it is opened once, so that what was looked at is what is read."""

    name: str
    """As errors name it."""
    stream: BufferedReader | BytesIO
    size: int

    def __str__(self) -> str:
        """Its name."""
        return self.name

    def __enter__(self) -> File:
        """Itself: it is closed at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.stream.close()

    def begins(self) -> bytes:
        """Its first bytes, which identify the format."""
        self.stream.seek(0)
        return self.stream.read(64)

    def opened(self) -> BufferedReader | BytesIO:
        """What libraries take, at its beginning."""
        self.stream.seek(0)
        return self.stream


def is_file(source: Any) -> bool:
    """Whether this names a file, or is one."""
    return isinstance(source, Mapping | str | os.PathLike | bytes | bytearray | memoryview) or hasattr(source, "read")


def as_file(source: Any, kind: str) -> File:
    """The file that is meant, opened.

    Args:
        source: For which `is_file` is true. A file that is open is read from its beginning.
        kind: What it should be, such as "a picture".

    Raises:
        LensplugError: If there is no such file, it is empty or no ordinary file (a folder, a FIFO, a device, or a link
            to one), or it is an address on the net.
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
        content = bytes(source)
        return File(f"the file of {len(content)} bytes", BytesIO(content), len(content))
    if not isinstance(source, str | os.PathLike):
        raise LensplugError(f"the path of {kind} is a {type(source).__name__}, expected a text or a pathlib.Path.")
    path = os.fsdecode(source)
    if ADDRESS.match(path):
        raise LensplugError(
            f"{_short(path)!r} is an address, and files are wanted: download it first, and give its path (or its"
            " bytes)."
        )
    if path == "":
        raise LensplugError(f"the path of {kind} is empty.")
    with suppress(RuntimeError):  # of a user that is not known: then there is no such file
        path = str(Path(path).expanduser())
    return _opened(path, kind)


@contextmanager
def decoding(name: object, what: str) -> Iterator[None]:
    """Whatever a library raises that decodes a file, as a sentence: of damaged ones they raise nearly everything.

    Raises:
        LensplugError: In the place of any other exception.
    """
    try:
        yield
    except (LensplugError, Warning):  # a warning is raised where its user has asked for that
        raise
    except MemoryError as error:
        raise LensplugError(
            f"{name} takes more memory than there is: make it smaller, or ask for more (one medium may take"
            f" {in_words(memory_limit())} here)."
        ) from error
    except Exception as error:
        raise LensplugError(f"{name} is not {what} that can be read: {error or type(error).__name__}") from error


def _opened(path: str, kind: str) -> File:
    name = repr(_short(path))
    try:
        _refuse_special(os.stat(path).st_mode, name, kind)  # before it is opened: opening a device may move something
        descriptor = os.open(path, READING)
    except LensplugError:
        raise
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte, or no character at all
        raise LensplugError(f"there is no file {name}.") from None
    except OSError as error:
        raise LensplugError(f"{name} cannot be opened: {error.strerror or error}.") from error
    stream = os.fdopen(descriptor, "rb")
    try:
        status = os.fstat(descriptor)  # of what was opened: the name may mean something else by now
        _refuse_special(status.st_mode, name, kind)
        if status.st_size == 0:
            raise LensplugError(f"{name} is an empty file, expected {kind}.")
    except LensplugError:
        stream.close()
        raise
    return File(name, stream, status.st_size)


def _refuse_special(mode: int, name: str, kind: str) -> None:
    if stat.S_ISDIR(mode):
        raise LensplugError(f"{name} is a folder, expected a file that is {kind}.")
    if not stat.S_ISREG(mode):
        file_type = next((words for test, words in KINDS.items() if test(mode)), "no ordinary file")
        raise LensplugError(f"{name} is {file_type}, expected a file that is {kind}: copy its content into one.")


def _all_of(source: Any, kind: str) -> bytes:
    """The whole of a file that is open, which is left where it stood."""
    if _is_device(source):
        raise LensplugError(f"the file for {kind} is a device, which may have no end: copy its content into a file.")
    movable = hasattr(source, "seekable") and source.seekable()
    before = source.tell() if movable else 0
    if movable:
        source.seek(0)
    content = bytearray()
    while part := source.read(CHUNK):
        if not isinstance(part, bytes):
            raise LensplugError(f"the file for {kind} is open as text: open it with 'rb'.")
        content += part
        refuse_beyond_limit(len(content), f"the file for {kind} has {len(content)} bytes or more", "give its path")
    if movable:
        source.seek(before)
    return bytes(content)


def _is_device(source: Any) -> bool:
    try:
        mode = os.fstat(source.fileno()).st_mode
    except (OSError, AttributeError, TypeError, ValueError):  # most of what can be read has no descriptor
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."
