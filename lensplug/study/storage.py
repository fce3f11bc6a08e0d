"""The files of a study: a folder on this machine, or on any file system that pyarrow opens (`s3://bucket/study`).

A file appears whole or not at all (`local_folder`, `arrow_folder`). Names are relative to the study, with `/`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import parse_qsl, unquote, urlsplit

from lensplug.errors import LensplugError
from lensplug.files.destinations import expanded
from lensplug.study.arrow_folder import ArrowFolder
from lensplug.study.local_folder import LocalFolder

SECRETS = re.compile(r"secret|password|token|credential|signature|sas|account_?key|access_?key", re.IGNORECASE)
"""Parameters of an address that are nobody else's business."""


@runtime_checkable
class Storage(Protocol):
    """What a study needs of a file system."""

    @property
    def place(self) -> str:
        """Where it is, as the user gave it."""

    @property
    def address(self) -> str:
        """Where it is, for a process that was started in another folder."""

    def names(self, folder: str) -> list[str]:
        """The names of the files and folders in a folder, in alphabetical order; none where there is no folder."""

    def read(self, name: str) -> bytes:
        """A file's content; FileNotFoundError where it is not."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all; what was there is replaced."""

    def note(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all, that may be lost: at once, and not flushed to disk."""

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it is there; whether it was written."""

    def rename(self, name: str, other: str) -> bool:
        """Rename a file; False where it is gone: of several who try, one succeeds."""

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    def age(self, name: str) -> float:
        """Seconds since a file was written, by the file system's clock; infinite where it is gone."""

    def remove_abandoned(self) -> None:
        """Delete what was never finished, by its age."""


def storage_at(place: str | Path | Storage) -> Storage:
    """The storage at a path or an address.

    Raises:
        LensplugError: If pyarrow knows no such file system, the path is a file, or the address has a secret in it.
    """
    if isinstance(place, Storage):
        return place
    text = str(place)
    if "://" not in text:
        return LocalFolder(expanded(text), text)
    _refuse_secrets(text)
    if text.startswith("file://"):
        return LocalFolder(Path(unquote(urlsplit(text).path)), text)
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        file_system, path = FileSystem.from_uri(text)
    except (ArrowException, OSError, ValueError) as error:
        raise LensplugError(f"{text!r} is not an address of a file system that pyarrow opens: {error}.") from error
    if not path.strip("/"):
        raise LensplugError(f"{text!r} names no folder: give one, {text.split('?')[0].rstrip('/')}/bucket/study.")
    return ArrowFolder(file_system, path, text)


def _refuse_secrets(text: str) -> None:
    """Refuse an address with a password or key in it: addresses are in messages, logs and lists of processes.

    Raises:
        LensplugError: Then, without the address.
    """
    parts = urlsplit(text)
    user, at, _ = parts.netloc.rpartition("@")
    if (at and ":" in user) or any(SECRETS.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise LensplugError(
            f"the address of the study, {parts.scheme}://..., has a password or key in it, and addresses appear in"
            " messages, logs and lists of processes: leave it out, and give it in the environment or in the"
            " provider's file (for S3 in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials)."
        )
