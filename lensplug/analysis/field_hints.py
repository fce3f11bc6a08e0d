"""The annotations of a result's fields as types: what reading and combining results go by."""

from __future__ import annotations

from typing import Any, get_type_hints


def field_hints(kind: type) -> dict[str, Any]:
    """Field -> its type, also where type checkers alone import what the annotation names."""
    import pandas

    return get_type_hints(kind, localns={"pd": pandas})
