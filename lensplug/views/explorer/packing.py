"""Numbers for a page, small: one byte each where a reader sees no more, many arrays in one packed string.

A picture of 3,000 tokens has millions of attention weights, and a page holds text: as JSON they would
weigh fifty megabytes. Here a value between 0 and the largest of its row becomes one of a few hundred steps
of its square root: small weights, of which there are most, keep their digits; the error is largest at the
top of a row, 1 / steps of its maximum. All arrays go into one string, gzip in base64, which a browser
inflates itself (`DecompressionStream`, in loader.js).
"""

from __future__ import annotations

import gzip
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

Layout = dict[str, dict[str, Any]]


def quantised(
    values: Float[np.ndarray, "*row value"], steps: int
) -> tuple[UInt8[np.ndarray, "*row value"], Float[np.ndarray, "*row"]]:
    """Each row as steps of the square root, and the largest value of the row."""
    largest = values.max(axis=-1).astype(np.float32)
    share: np.ndarray = values / np.maximum(largest, np.finfo(np.float32).tiny)[..., None]
    return np.rint(np.sqrt(share) * steps).astype(np.uint8), largest


def restored(
    codes: UInt8[np.ndarray, "*row value"], largest: Float[np.ndarray, "*row"], steps: int
) -> Float[np.ndarray, "*row value"]:
    """What the page shows for them; explorer.js computes the same."""
    values: np.ndarray = largest[..., None] * (codes / np.float32(steps)) ** 2
    return values.astype(np.float32)


def packed(arrays: Mapping[str, np.ndarray]) -> tuple[str, Layout]:
    """The arrays as one string, and where each lies in it."""
    # A browser reads numbers of four bytes only at offsets that four divides: the widest go first.
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    layout: Layout = {}
    at = 0
    for name, array in ordered:
        layout[name] = {"type": str(array.dtype), "shape": list(array.shape), "at": at}
        at += array.nbytes
    return inflatable(b"".join(np.ascontiguousarray(array).tobytes() for _, array in ordered)), layout


def unpacked(text: str, layout: Layout) -> dict[str, np.ndarray]:
    """The arrays again."""
    data = gzip.decompress(b64decode(text))
    return {
        name: np.frombuffer(data, one["type"], int(np.prod(one["shape"])), one["at"]).reshape(one["shape"])
        for name, one in layout.items()
    }


def inflatable(data: bytes) -> str:
    """Bytes as text that loader.js inflates."""
    # Level 9 takes ten times as long on a table of texts, for a hundredth of its size.
    return b64encode(gzip.compress(data, 6, mtime=0)).decode()


def json_for_script(value: Any) -> str:
    """JSON that can stand in a script element: no text can end it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
