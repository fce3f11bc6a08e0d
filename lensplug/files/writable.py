"""Whether something can be written under a path, found out before anything is computed.

A report of minutes that ends with "permission denied" is lost. Asking for permissions is not enough (root has all, and
still cannot write to a read-only disk or into /proc): a file is made where the result will be, and taken away again.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lensplug.errors import LensplugError


def file_to_write(path: str | Path) -> Path:
    """The path of a file that can be written; folders above it may be missing, and nothing is left there.

    Raises:
        LensplugError: If it cannot be.
    """
    target = Path(path).expanduser()
    if not target.name or str(path).endswith(("/", os.sep)) or os.path.isdir(target):
        raise LensplugError(f"{str(path)!r} is a folder, and a file is to be written: give a name in it, such as"
                            f" {str(target / 'report.html')!r}.")  # fmt: skip
    if os.path.exists(target) and not os.path.isfile(target):
        raise LensplugError(f"{str(path)!r} is a device or a pipe, and a file is to be written: give another path.")
    if os.path.isfile(target) and not os.access(target, os.W_OK):
        raise LensplugError(f"{str(path)!r} cannot be written: it is there already, and read-only. Give another path.")
    _refuse_unwritable(target.parent, target.name, path)
    return target


def folder_to_write(path: str | Path) -> Path:
    """The path of a folder in which files can be written; it may be missing, and is not made.

    Raises:
        LensplugError: If it cannot be.
    """
    target = Path(path).expanduser()
    if (os.path.exists(target) or target.is_symlink()) and not os.path.isdir(target):
        raise LensplugError(f"{str(path)!r} is a file, and a folder is to be written: give another path.")
    _refuse_unwritable(target, "index.html", path)
    return target


def unwritten(path: str | Path, error: OSError) -> LensplugError:
    """The sentence of what went wrong while writing."""
    return LensplugError(f"{str(path)!r} cannot be written: {error.strerror or error}. Give another path.")


def _refuse_unwritable(folder: Path, name: str, path: str | Path) -> None:
    """Make a file in the folder, or in the nearest above it that is there, and take it away again."""
    there = folder
    while not (os.path.exists(there) or there.is_symlink()) and there != there.parent:
        there = there.parent
    if not os.path.isdir(there):
        raise LensplugError(f"{str(path)!r} cannot be written: {str(there)!r} is no folder. Give another path.")
    try:
        os.stat(folder / f"{name}.part")  # a name that is too long says so
    except FileNotFoundError:
        pass
    except OSError as error:
        raise unwritten(path, error) from error
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".lensplug-"):
            pass
    except OSError as error:
        raise unwritten(path, error) from error
