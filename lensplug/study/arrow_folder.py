"""The files of a study on a file system of pyarrow's: S3 and what speaks its protocol, Google Cloud Storage, Hadoop.

An object store makes an object visible when its upload is complete; elsewhere a file is written under another name and
renamed. Such file systems create nothing exclusively, and object stores rename by copying. Of two processes that claim
one chunk at the same moment both may begin with it, until one sees the claim of the other; each would write the same
file, so that nothing is lost or counted twice.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lensplug.errors import LensplugError
from lensplug.files.atomic_write import UNFINISHED
from lensplug.study.local_folder import ABANDONED_S, CLOCK_S

OBJECT_STORES = ("s3", "gcs", "abfs")
"""pyarrow's names of file systems that have no folders, and show an object when it is complete."""
CLOCK = "claims/clock"
"""A file that is written to see which time it gets."""


class ArrowFolder:
    """A folder of a file system of pyarrow's."""

    def __init__(self, file_system: Any, path: str, place: str) -> None:
        """Use `storage_at`."""
        self.file_system = file_system
        self.path = path.rstrip("/")
        self.place = place
        self._ahead: tuple[float, float] | None = None

    @property
    def address(self) -> str:
        """The address that it was opened with."""
        return self.place

    def names(self, folder: str) -> list[str]:
        """The names of what is in a folder."""
        from pyarrow.fs import FileSelector

        with self._explained(folder, "be listed"):
            try:
                infos = self.file_system.get_file_info(FileSelector(self._at(folder), allow_not_found=True))
            except NotADirectoryError:
                return []
        return sorted(name for name in (info.base_name for info in infos) if not name.startswith(UNFINISHED))

    def read(self, name: str) -> bytes:
        """A file's content."""
        with (
            self._explained(name, "be read"),
            self.file_system.open_input_stream(self._at(name), compression=None) as stream,
        ):
            content: bytes = stream.read()
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        target = self._at(name)
        folder, _, last = target.rpartition("/")
        with self._explained(name, "be written"):
            if self.file_system.type_name in OBJECT_STORES:
                self._upload(target, content)
                return
            self.file_system.create_dir(folder, recursive=True)
            unfinished = f"{folder}/{UNFINISHED}{secrets.token_hex(8)}"
            try:
                self._upload(unfinished, content)
                self.file_system.move(unfinished, target)
            except BaseException:
                with suppress(OSError):
                    self.file_system.delete_file(unfinished)
                raise

    def note(self, name: str, content: bytes) -> None:
        """Write a file that may be lost."""
        with suppress(LensplugError):
            self.write(name, content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it is there; where two do so at once, the last of them has written it."""
        if self.exists(name):
            return False
        self.write(name, content)
        return self.read(name) == content

    def rename(self, name: str, other: str) -> bool:
        """Rename a file."""
        try:
            self.file_system.move(self._at(name), self._at(other))
        except OSError as error:
            if self.exists(name):
                raise LensplugError(f"{name!r} of {self.place!r} cannot be renamed: {error}.") from error
            return False
        return True

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError), self._explained(name, "be deleted"):
            self.file_system.delete_file(self._at(name))

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._written(name) is not None

    def age(self, name: str) -> float:
        """Seconds since a file was written."""
        written = self._written(name)
        return float("inf") if written is None else time.time() + self._clock_ahead() - written

    def remove_abandoned(self) -> None:
        """Delete what was never finished, by its age; an upload to an object store that broke off is no object."""
        if self.file_system.type_name in OBJECT_STORES:
            return
        from pyarrow.fs import FileSelector

        for info in self.file_system.get_file_info(FileSelector(self.path, allow_not_found=True, recursive=True)):
            if info.base_name.startswith(UNFINISHED):
                with suppress(OSError):
                    if self.age(info.path.removeprefix(f"{self.path}/")) > ABANDONED_S:
                        self.file_system.delete_file(info.path)

    def _upload(self, path: str, content: bytes) -> None:
        stream = self.file_system.open_output_stream(path, compression=None)
        try:
            stream.write(content)
        except BaseException:
            with suppress(OSError):
                stream.close()  # which makes an object of what was uploaded until now
                self.file_system.delete_file(path)
            raise
        stream.close()

    def _written(self, name: str) -> float | None:
        """When a file was written, by the file system's clock; None where it is gone."""
        from pyarrow.fs import FileType

        with self._explained(name, "be looked for"):
            info = self.file_system.get_file_info(self._at(name))
        if info.type == FileType.NotFound:
            return None
        return time.time() if info.mtime_ns is None else float(info.mtime_ns / 1e9)

    def _clock_ahead(self) -> float:
        """By how many seconds the clock that dates files is ahead of this machine's."""
        if self._ahead is None or time.monotonic() - self._ahead[0] > CLOCK_S:
            before = time.time()
            self.note(CLOCK, b"")
            self._ahead = time.monotonic(), (self._written(CLOCK) or before) - before
        return self._ahead[1]

    @contextmanager
    def _explained(self, name: str, what: str) -> Iterator[None]:
        """Make a sentence of what a file system says; what is not there stays FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise LensplugError(f"{name or 'the folder'!r} of {self.place!r} cannot {what}: {error}.") from error

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path
