"""A file appears whole or not at all: the one way in which lensplug writes files.

The bytes go to a new file with a random name next to the target, are flushed to disk, and the file then takes the
target's name in one step. Whoever reads meets the old file or the new one, also while several processes write; what
breaks off (an exception, Ctrl-C, a full disk) leaves the old file and nothing else. Who might read and write the old
file may read and write the new one. Other names of the old file (hard links) keep the old content.

When not to use it: a folder of several files that belong together (`unfinished_folder`).

    write_text("report.html", html)
    with opened("heads.parquet") as file:
        frame.to_parquet(file)
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lensplug.files.destinations import expanded, file_target, unwritten

UNFINISHED = ".lensplug-unfinished-"
"""How the name of what is not whole yet begins; a process that was killed leaves it."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""What the disk says, and not the code that had something to write."""
ACCESS_LIST = "system.posix_acl_access"


def write_text(path: str | Path, text: str) -> Path:
    """Write a text in UTF-8, as `write_bytes` does."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file; folders above it are made.

    Returns:
        The path, `~` expanded.

    Raises:
        LensplugError: If it cannot be written, or the target exists and is not a regular file.
    """
    with opened(path) as file:
        file.write(content)
    return expanded(path)


@contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write bytes to; it takes its name when the block ends, and is gone if the block raises.

    Raises:
        LensplugError: If it cannot be written, or the target exists and is not a regular file.
    """
    target = file_target(path)
    unfinished = Unfinished(target)
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            file = unfinished.open()
        except OSError as error:
            raise unwritten(path, error) from error
        try:
            yield file
        except OSError as error:
            if error.errno in FULL:
                raise unwritten(path, error) from error
            raise
        file_target(path)  # what was put there since
        try:
            unfinished.publish(file)
        except OSError as error:  # a disk that became full, a folder that is gone
            raise unwritten(path, error) from error
    finally:
        try:
            unfinished.remove()
        finally:  # also where a second Ctrl-C ends the first
            unfinished.remove()


class Unfinished:
    """A new file next to a target, whose name it takes at the end.

    The folder is opened once, and names are looked up in what was opened: it may be moved meanwhile.
    """

    def __init__(self, target: Path) -> None:
        """Choose a name; nothing is made."""
        self._target = target
        self._name = UNFINISHED + secrets.token_hex(8)  # its length is not that of the target, which may be the longest
        self._folder: int | None = None
        self._file: BinaryIO | None = None
        self._before: os.stat_result | None = None

    def open(self) -> BinaryIO:
        """Create the file: new, not through a link, and with no wider permissions than what it replaces."""
        if os.open in os.supports_dir_fd:
            self._folder = os.open(self._target.parent, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
        self._before = self._there()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        mode = 0o666 if self._before is None else 0o600
        name = self._place(self._name)
        self._file = open(name, "wb", opener=lambda name, _: os.open(name, flags, mode, dir_fd=self._folder))
        return self._file

    def publish(self, file: BinaryIO) -> None:
        """Flush it to disk and rename it to the target."""
        before = self._there() or self._before
        file.flush()
        if before is not None and hasattr(os, "fchown"):
            _take_over(file.fileno(), before, _access_list(self._target))
        os.fsync(file.fileno())
        file.close()
        target = self._place(self._target.name)
        os.replace(self._place(self._name), target, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        if self._folder is not None:
            with suppress(OSError):  # the name too; not every file system can, and the file is whole
                _to_disk(self._folder)

    def remove(self) -> None:
        """Close and delete what was not published; may be called again."""
        if self._file is not None:
            with suppress(OSError):  # what is still to be written and does not fit
                self._file.close()
        with suppress(OSError):
            os.unlink(self._place(self._name), dir_fd=self._folder)
        if self._folder is not None:
            folder, self._folder = self._folder, None
            os.close(folder)

    def _place(self, name: str) -> str:
        return name if self._folder is not None else str(self._target.parent / name)

    def _there(self) -> os.stat_result | None:
        try:
            return os.stat(self._place(self._target.name), dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None


def _take_over(file: int, before: os.stat_result, access_list: bytes | None) -> None:
    """Copy owner, group and permissions of another file where allowed, never widening access."""
    mode = before.st_mode & 0o777
    if (before.st_uid, before.st_gid) != (os.fstat(file).st_uid, os.fstat(file).st_gid):
        try:
            os.fchown(file, before.st_uid, before.st_gid)
        except OSError:
            try:
                os.fchown(file, -1, before.st_gid)
            except OSError:  # the group is another one now: it may do what everybody may
                mode = mode & 0o707 | (mode & 0o007) << 3
                access_list = None
    os.fchmod(file, mode)
    if access_list is not None:
        try:
            os.setxattr(file, ACCESS_LIST, access_list)
        except OSError:  # without the list, the bits of the group would be its largest entry
            os.fchmod(file, mode & 0o707)


def _access_list(target: Path) -> bytes | None:
    """The access control list of a file, on Linux and where it has one beyond its mode."""
    if not hasattr(os, "getxattr"):
        return None
    try:
        return os.getxattr(target, ACCESS_LIST, follow_symlinks=False)
    except OSError:
        return None


def _to_disk(folder: int) -> None:
    listed = os.open(".", os.O_RDONLY, dir_fd=folder)
    try:
        os.fsync(listed)
    finally:
        os.close(listed)
