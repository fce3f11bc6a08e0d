"""Whether something can be written under a path, found out before anything is computed.

A report of minutes that ends with "permission denied" is lost. Asking for permissions is not enough (root has all, and
still cannot write to a read-only disk or into /proc): a file is made where the result will be, and taken away again.
"""

from __future__ import annotations

import os
from pathlib import Path

from lensplug.errors import LensplugError
from lensplug.files.atomic_write import Unfinished
from lensplug.files.destinations import expanded, file_target, refuse_planted_links, unwritten


def file_to_write(path: str | Path) -> Path:
    """The path of a file that can be written; folders above it may be missing, and nothing is left there.

    Raises:
        LensplugError: If it cannot be.
    """
    target = file_target(path)
    if os.path.isfile(target) and not os.access(target, os.W_OK):
        raise LensplugError(f"{str(path)!r} cannot be written: it is there already, and read-only. Give another path.")
    _refuse_unwritable(target.parent, path)
    return target


def folder_to_write(path: str | Path) -> Path:
    """The path of a folder in which files can be written; it may be missing, and is not made.

    Raises:
        LensplugError: If it cannot be.
    """
    target = expanded(path)
    refuse_planted_links(target, path)
    if os.path.lexists(target) and not os.path.isdir(target):
        raise LensplugError(f"{str(path)!r} is a file, and a folder is to be written: give another path.")
    _refuse_unwritable(target, path)
    return target


def _refuse_unwritable(folder: Path, path: str | Path) -> None:
    """Make a file in the folder, or in the nearest above it that is there, and take it away again."""
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not os.path.isdir(existing):
        raise LensplugError(f"{str(path)!r} cannot be written: {str(existing)!r} is no folder. Give another path.")
    probe = Unfinished(existing / "probe")
    try:
        try:
            os.lstat(folder / "probe")  # a name that is too long says so
        except FileNotFoundError:
            pass
        probe.open()
    except OSError as error:
        raise unwritten(path, error) from error
    finally:
        try:
            probe.remove()
        finally:  # also where a second Ctrl-C ends the first
            probe.remove()
