"""The versions of the packages that numbers depend on."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

version_of = cache(version)
"""The version of one package, looked up once: each look-up parses a metadata file, for 1.5 ms."""


def versions(*packages: str) -> dict[str, str]:
    """Package -> installed version."""
    return {name: version_of(name) for name in packages}
