"""The files of a study in a folder on this machine, or on a file system that several machines share (NFS, Lustre).

A file is written under another name, flushed and renamed (`lensplug.files.atomic_write`).
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from lensplug.errors import LensplugError
from lensplug.files.atomic_write import UNFINISHED, write_bytes

ABANDONED_S = 3600.0
"""A file that is still unfinished after this time was left by a process that died."""
CLOCK_S = 60.0
"""How long the difference between two clocks is relied on."""


class LocalFolder:
    """A folder of the operating system's."""

    def __init__(self, path: Path, place: str) -> None:
        """Use `storage_at`."""
        self.path = path
        self.place = place
        self._ahead: tuple[float, float] | None = None
        if path.exists() and not path.is_dir():
            raise LensplugError(f"{place!r} is a file, and a study is a folder: give another path.")

    @property
    def address(self) -> str:
        """Its path from the root."""
        return str(self.path.absolute())

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
        """Write a file that may be lost: on a full disk it is."""
        target = self.path / name
        unfinished = target.with_name(UNFINISHED + secrets.token_hex(8))
        with suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                unfinished.write_bytes(content)
                os.replace(unfinished, target)
            finally:
                unfinished.unlink(missing_ok=True)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it is there."""
        target = self.path / name
        unfinished = target.with_name(UNFINISHED + secrets.token_hex(8))
        try:
            write_bytes(unfinished, content)
            os.link(unfinished, target)  # unlike a file opened with "x", whole from its first moment
        except FileExistsError:
            return os.stat(unfinished).st_nlink == 2  # NFS, whose first answer was lost: the link is ours
        except OSError:  # a file system without links
            try:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            except FileExistsError:
                return False
            os.replace(unfinished, target)
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

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).exists()

    def age(self, name: str) -> float:
        """Seconds since a file was written."""
        try:
            written = os.stat(self.path / name).st_mtime
        except FileNotFoundError:
            return float("inf")
        return time.time() + self._clock_ahead() - written

    def remove_abandoned(self) -> None:
        """Delete what was never finished, by its age."""
        for path in self.path.rglob(f"{UNFINISHED}*"):
            with suppress(OSError):
                if self.age(str(path.relative_to(self.path))) > ABANDONED_S:
                    path.unlink()

    def _clock_ahead(self) -> float:
        """By how many seconds the clock that dates files, which is a server's with NFS, is ahead of this machine's."""
        if self._ahead is None or time.monotonic() - self._ahead[0] > CLOCK_S:
            probe, ahead = self.path / (UNFINISHED + secrets.token_hex(8)), 0.0
            with suppress(OSError):  # a folder that can only be read
                probe.touch()
                ahead = probe.stat().st_mtime - time.time()
                probe.unlink()
            self._ahead = time.monotonic(), ahead
        return self._ahead[1]
