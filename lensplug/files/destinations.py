"""What may stand where a file is to be written: nothing, or a regular file; and the links on the way there.

A device, a pipe or a socket is never replaced by a page. Nor is a link: to follow it writes where its maker chose, and
to replace it is not what a user who made it wants, so its end is named instead. Links to folders on the way are
followed, as everywhere, unless another user put them into a folder in which everybody may (such as /tmp): that is the
rule of Linux's `fs.protected_symlinks`, which is off on some machines and absent on others.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lensplug.errors import LensplugError

KINDS = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
LINKS = 40
"""So many the system follows before it takes them for a ring."""


def file_target(path: str | Path) -> Path:
    """The path of a file that may be written: absent, or a regular file.

    Raises:
        LensplugError: If the path is something else, or cannot be examined.
    """
    target = expanded(path)
    if not target.name or str(path).endswith(("/", os.sep)) or os.path.isdir(target):
        raise LensplugError(f"{str(path)!r} is a folder, and a file is to be written: give a name in it, such as"
                            f" {str(target / 'report.html')!r}.")  # fmt: skip
    refuse_planted_links(target.parent, path)
    try:
        mode = os.lstat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return target
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise unwritten(path, error) from error
    if stat.S_ISLNK(mode):
        raise LensplugError(
            f"{str(path)!r} is a link to {os.readlink(target)!r}, and links are not written through: give the path of"
            " the file itself."
        )
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise LensplugError(f"{str(path)!r} is {kind}, and a file is to be written: give another path.")
    return target


def expanded(path: str | Path) -> Path:
    """The path with `~` and `~user` written out.

    Raises:
        LensplugError: If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise LensplugError(f"{str(path)!r} names a user who has no home here: give the path in full.") from error


def refuse_planted_links(folder: Path, path: str | Path) -> None:
    """Refuse a link on the way that another user put into a folder in which everybody may.

    Args:
        folder: All of its parts are looked at, and those of the links among them.
        path: As the user gave it.

    Raises:
        LensplugError: If there is one.
    """
    if not hasattr(os, "geteuid"):
        return
    to_come = [*reversed((Path.cwd() / folder).parts)]
    folder_so_far, links = Path(to_come.pop()), 0
    while to_come and links <= LINKS:
        step = folder_so_far / to_come.pop()
        try:
            status = os.lstat(step)
            if not stat.S_ISLNK(status.st_mode):
                folder_so_far = step.parent.parent if step.name == ".." else step  # `here` has no links in it
                continue
            above, end = os.stat(folder_so_far), Path(os.readlink(step))
        except OSError:  # not there yet; what cannot be entered is said by who writes
            return
        for_everybody = above.st_mode & stat.S_ISVTX and above.st_mode & stat.S_IWOTH
        if for_everybody and status.st_uid not in (os.geteuid(), above.st_uid):
            raise LensplugError(
                f"{str(path)!r} cannot be written: {str(step)!r} is a link of another user, in a folder in which"
                " everybody may put one. Give another path."
            )
        links += 1
        if end.is_absolute():
            folder_so_far = Path(end.anchor)
        to_come += reversed(end.parts[1:] if end.is_absolute() else end.parts)


def unwritten(path: str | Path, error: OSError) -> LensplugError:
    """The sentence of what went wrong while writing."""
    return LensplugError(f"{str(path)!r} cannot be written: {error.strerror or error}. Give another path.")
