"""The files of a study: a folder on this machine, or on any file system that pyarrow opens (`s3://bucket/study`).

A file appears whole or not at all. On a local folder it is written under another name, flushed and renamed
(`lensplug.files.atomic_write`); an object store makes an object visible when its upload is complete. Names are relative
to the study, with `/`.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lensplug.errors import LensplugError
from lensplug.files.atomic_write import UNFINISHED, write_bytes
from lensplug.files.destinations import expanded

ABANDONED_S = 3600.0
"""A file that is still unfinished after this time was left by a process that died."""


@runtime_checkable
class Storage(Protocol):
    """What a study needs of a file system."""

    @property
    def place(self) -> str:
        """Where it is, as the user gave it."""

    def names(self, folder: str) -> list[str]:
        """The names of the files and folders in a folder, in alphabetical order; none where there is no folder."""

    def read(self, name: str) -> bytes:
        """A file's content; FileNotFoundError where it is not."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all; what was there is replaced."""

    def note(self, name: str, content: bytes) -> None:
        """Write a file that may be lost: at once, and not flushed to disk."""

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it is there; whether it was written."""

    def rename(self, name: str, other: str) -> bool:
        """Rename a file; False where it is gone: of several who try, one succeeds."""

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""

    def touch(self, name: str) -> None:
        """Give a file the time of now."""

    def age(self, name: str) -> float:
        """Seconds since a file was written or touched; infinite where it is gone."""

    def remove_abandoned(self) -> None:
        """Delete what was never finished, by its age."""


def storage_at(place: str | Path | Storage) -> Storage:
    """The storage at a path or an address.

    Raises:
        LensplugError: If pyarrow knows no such file system, or the path is a file.
    """
    if isinstance(place, Storage):
        return place
    text = str(place)
    if "://" not in text:
        return LocalFolder(expanded(text), text)
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        file_system, path = FileSystem.from_uri(text)
    except (ArrowException, OSError, ValueError) as error:
        raise LensplugError(f"{text!r} is not an address of a file system that pyarrow opens: {error}.") from error
    return ArrowFolder(file_system, path, text)


class LocalFolder:
    """A folder on this machine, or on a file system that several machines share."""

    def __init__(self, path: Path, place: str) -> None:
        """Use `storage_at`."""
        self.path = path
        self.place = place
        if path.exists() and not path.is_dir():
            raise LensplugError(f"{place!r} is a file, and a study is a folder: give another path.")

    def names(self, folder: str) -> list[str]:
        """The names of what is in a folder."""
        try:
            return sorted(name for name in os.listdir(self.path / folder) if not name.startswith(UNFINISHED))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, name: str) -> bytes:
        """A file's content."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        write_bytes(self.path / name, content)

    def note(self, name: str, content: bytes) -> None:
        """Write a file that may be lost."""
        (self.path / name).write_bytes(content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it is there."""
        target = self.path / name
        unfinished = target.with_name(UNFINISHED + secrets.token_hex(8))
        write_bytes(unfinished, content)
        try:
            os.link(unfinished, target)  # unlike a file opened with "x", whole from its first moment
        except FileExistsError:
            return False
        finally:
            unfinished.unlink(missing_ok=True)
        return True

    def rename(self, name: str, other: str) -> bool:
        """Rename a file."""
        try:
            os.rename(self.path / name, self.path / other)
        except FileNotFoundError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def touch(self, name: str) -> None:
        """Give a file the time of now."""
        with suppress(FileNotFoundError):
            os.utime(self.path / name)

    def age(self, name: str) -> float:
        """Seconds since a file was written or touched."""
        try:
            return time.time() - os.stat(self.path / name).st_mtime
        except FileNotFoundError:
            return float("inf")

    def remove_abandoned(self) -> None:
        """Delete what was never finished, by its age."""
        for path in self.path.rglob(f"{UNFINISHED}*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()


class ArrowFolder:
    """A folder of a file system of pyarrow's: S3, Google Cloud Storage, Hadoop, or one in memory.

    Such file systems create nothing exclusively and rename by copying. Of two processes that claim one chunk at the
    same moment both may compute it; each writes the same file, so that nothing is lost or counted twice.
    """

    def __init__(self, file_system: Any, path: str, place: str) -> None:
        """Use `storage_at`."""
        self.file_system = file_system
        self.path = path.rstrip("/")
        self.place = place

    def names(self, folder: str) -> list[str]:
        """The names of what is in a folder."""
        from pyarrow.fs import FileSelector

        infos = self.file_system.get_file_info(FileSelector(self._at(folder), allow_not_found=True))
        return sorted(info.base_name for info in infos)

    def read(self, name: str) -> bytes:
        """A file's content."""
        with self.file_system.open_input_stream(self._at(name), compression=None) as stream:
            content: bytes = stream.read()
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        self.file_system.create_dir(self._at(name).rpartition("/")[0], recursive=True)
        try:
            with self.file_system.open_output_stream(self._at(name), compression=None) as stream:
                stream.write(content)
        except OSError as error:
            raise LensplugError(f"{name!r} of {self.place!r} cannot be written: {error}.") from error

    def note(self, name: str, content: bytes) -> None:
        """Write a file that may be lost."""
        self.write(name, content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it is there."""
        if self.age(name) != float("inf"):
            return False
        self.write(name, content)
        return True

    def rename(self, name: str, other: str) -> bool:
        """Rename a file."""
        try:
            self.file_system.move(self._at(name), self._at(other))
        except OSError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError, OSError):
            self.file_system.delete_file(self._at(name))

    def touch(self, name: str) -> None:
        """Give a file the time of now."""
        with suppress(FileNotFoundError):
            self.write(name, self.read(name))

    def age(self, name: str) -> float:
        """Seconds since a file was written or touched."""
        from pyarrow.fs import FileType

        info = self.file_system.get_file_info(self._at(name))
        if info.type == FileType.NotFound:
            return float("inf")
        return time.time() - info.mtime_ns / 1e9 if info.mtime_ns else 0.0

    def remove_abandoned(self) -> None:
        """Nothing: an upload that broke off is no object."""

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path
