"""The name of a model in shared results and pages, which contain no local paths."""

from __future__ import annotations

import os.path
from pathlib import Path


def public_name(name: str) -> str:
    """A model's name on the hub as it is; of a folder its last part.

    A path is known by how it looks: the folder may be gone, or another machine's.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    looks_like_a_path = "\\" in name or name.startswith(("/", ".", "~")) or len(parts) > 2 or name[1:2] == ":"
    if not parts or not (looks_like_a_path or os.path.isdir(name)):
        return name
    last = parts[-1]
    if last in (".", ".."):
        last = Path(name).resolve().name
    of_hub = next((part for part in parts if part.startswith("models--")), None)  # a snapshot in the hub's own cache
    return of_hub.removeprefix("models--").replace("--", "/") if of_hub else last
