"""A folder of files that belong together (a model of many GB) appears whole, or what is left of it tells what it is.

It is filled next to the target, under a telling name, and renamed to the target once it is complete and on disk. An
exception removes it. A killed process cannot: then it stays, and the next writer gets a message with its path, its size
and how to delete it. It is never deleted for them: another process may be at work in it,
which is known where the file system has locks.

When not to use it: for one file (`atomic_write`).

    with unfinished_folder(out) as folder:
        model.save_pretrained(folder)
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lensplug.errors import LensplugError
from lensplug.files.atomic_write import FULL, UNFINISHED
from lensplug.files.destinations import unwritten

LAST = "config.json"
"""Without it a folder is no model: it is moved last."""
LOCK = "in use"


@contextmanager
def unfinished_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `out` when the block ends, and is gone if the block raises.

    Where `out` is there already, its files are moved into it, `config.json` last, each replacing its namesake: it may
    be another disk than what is around it, and it stays that folder.

    Raises:
        LensplugError: If it cannot be written, or another process wrote to `out` meanwhile. What is whole then stays
            under the name that is said.
    """
    exists, empty = out.is_dir(), not (out.is_dir() and holds_files(out))
    name = os.path.basename(os.path.realpath(out)).encode(errors="surrogateescape")[:100].decode(errors="ignore")
    around = (out if exists else out.parent) / f"{UNFINISHED}{name}-{secrets.token_hex(4)}"
    folder, lock = around / "whole", None
    try:
        try:
            around.parent.mkdir(parents=True, exist_ok=True)
            around.mkdir(mode=0o700)
            lock = _locked(around)
            folder.mkdir()  # with the mode that folders of this process have: it is this one that stays
        except OSError as error:
            raise unwritten(out, error) from error
        try:
            yield folder
        except OSError as error:
            if error.errno in FULL:
                raise unwritten(out, error) from error
            raise
        try:
            _all_to_disk(folder)
            if empty and os.path.lexists(out) and not (exists and not holds_files(out)):
                _keep(folder, (out if exists else out.parent) / f"{name}-{secrets.token_hex(4)}", out)
            _move_files(folder, out) if exists else folder.rename(out)
        except OSError as error:
            raise unwritten(out, error) from error
    finally:
        try:
            _remove(around, lock)
        finally:  # also where a second Ctrl-C ends the first
            _remove(around, lock)


def leftovers(out: Path) -> list[str]:
    """A message for each unfinished folder of this user in `out` or next to it, unless a process is working in it."""
    sentences = []
    for folder in dict.fromkeys((out.absolute().parent, out.absolute())):
        for leftover in sorted(folder.glob(f"{UNFINISHED}*")) if folder.is_dir() else ():
            if not leftover.is_dir() or leftover.is_symlink() or _of_another(leftover):
                continue
            used = _is_used(leftover)
            if used:
                continue
            whose = "no process works on it any more:" if used is False else "unless a process still works on it,"
            sentences.append(
                f"{str(leftover)!r} ({_bytes(leftover) / 1e9:.1f} GB) is what was left when a process was killed while"
                " it"
                f" wrote; {whose} delete it with: rm -r {shlex.quote(str(leftover))}"
            )
    return sentences


def holds_files(out: Path) -> bool:
    """Whether a folder has anything in it but what was left unfinished."""
    return any(not path.name.startswith(UNFINISHED) for path in out.iterdir())


def _locked(around: Path) -> BinaryIO:
    """A file that is locked as long as this process lives, where the file system can."""
    lock = open(around / LOCK, "xb")
    with suppress(ImportError, OSError):
        import fcntl  # not on every system

        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _remove(around: Path, lock: BinaryIO | None) -> None:
    if lock is not None:
        lock.close()
    shutil.rmtree(around, ignore_errors=True)


def _is_used(around: Path) -> bool | None:
    """Whether a process is working in it; None if unknown."""
    try:
        import fcntl

        lock = os.open(around / LOCK, os.O_RDWR)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(lock)


def _bytes(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # gone meanwhile
                total += os.lstat(os.path.join(where, name)).st_size
    return total


def _of_another(folder: Path) -> bool:
    return hasattr(os, "geteuid") and folder.lstat().st_uid != os.geteuid()


def _all_to_disk(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDWR)
            try:
                os.fsync(file)
            finally:
                os.close(file)


def _keep(folder: Path, kept_folder: Path, out: Path) -> None:
    """Rename it to a free name if the target is taken, since it may hold hours of work."""
    folder.rename(kept_folder)
    raise LensplugError(
        f"another process wrote to {str(out)!r} meanwhile; what was to be written there is in {str(kept_folder)!r}."
    )


def _move_files(folder: Path, out: Path) -> None:
    """Move files into a folder; if one fails, remove those already moved."""
    moved: list[Path] = []
    try:
        for file in sorted(folder.iterdir(), key=lambda file: (file.name == LAST, file.name)):
            if not os.path.lexists(out / file.name):
                moved.append(out / file.name)
            os.replace(file, out / file.name)
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        raise
