"""JSON files that came from elsewhere: read whole, or refused in a sentence that names the file and what it is."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from lensplug.errors import LensplugError

LARGEST = {"tokenizer.json": 200 << 20, "vocab.json": 200 << 20, "": 20 << 20}
"""Bytes, ten times the largest that are known; "" is every other file."""
AGAIN = "Fetch it again"
WHAT = {
    b"version https://git-lfs": "a pointer of Git LFS, which says where the file is: run `git lfs pull` in its folder",
    b"<": "an HTML page, such as a server's message that it has no such file: fetch it again",
}
"""How a file begins that a download has left in the place of another; and what it is."""


def refuse_no_file(path: Path) -> None:
    """Raise unless this is a regular file, or a link to one, that can be read.

    A pipe would be waited for, and a device read, for ever.

    Raises:
        LensplugError: Then.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise LensplugError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise LensplugError(f"{str(path)!r} is no regular file, but {kind}: put the file there. {AGAIN}.")
    if not os.access(path, os.R_OK):
        raise LensplugError(f"{str(path)!r} may not be read by this user: chmod u+r, or ask its owner.")


def what_else(beginning: bytes) -> str:
    """What a file is whose place another should have, by its first bytes; "" if that is not known."""
    if not beginning:
        return "empty: fetch it again"
    return next((what for start, what in WHAT.items() if beginning.lstrip().startswith(start)), "")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        LensplugError: If it is no regular file, larger than any of its kind, or not JSON.
    """
    refuse_no_file(path)
    most = LARGEST.get(path.name, LARGEST[""])
    if (size := path.stat().st_size) > most:
        raise LensplugError(f"{str(path)!r} has {size >> 20} MB, expected at most {most >> 20} MB of JSON.")
    data = path.read_bytes()
    if content_kind := what_else(data[:200]):
        raise LensplugError(f"{str(path)!r} is {content_kind}.")
    if data.startswith(b"\xef\xbb\xbf"):
        raise LensplugError(f"{str(path)!r} begins with a byte order mark: save it as UTF-8 without one.")
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise LensplugError(f"{str(path)!r} is nested too deeply to be read. {AGAIN}.") from error
    except ValueError as error:
        raise LensplugError(f"{str(path)!r} is no JSON ({error}). {AGAIN}.") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        LensplugError: If it holds none.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise LensplugError(f"{str(path)!r} holds a {type(content).__name__}, expected an object, {{...}}. {AGAIN}.")
    return content
