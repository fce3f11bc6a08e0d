"""Compact numbers for a page: one byte each where that is precise enough, many arrays in one packed string.

An image of 3,000 tokens has millions of attention weights; as JSON text they would take 50 MB. Here each value is
divided by the largest of its row, and the square root of that is quantised to a few hundred levels: small weights,
the majority, keep their relative precision; the error is largest at the row maximum, 1 / steps of it. All arrays go
into one string (gzip, base64), which the browser decompresses itself (`DecompressionStream`, in loader.js).
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
    """Each row quantised on a square-root scale, and the largest value of each row."""
    largest = values.max(axis=-1).astype(np.float32)
    share: np.ndarray = values / np.maximum(largest, np.finfo(np.float32).tiny)[..., None]
    return np.rint(np.sqrt(share) * steps).astype(np.uint8), largest


def restored(
    codes: UInt8[np.ndarray, "*row value"], largest: Float[np.ndarray, "*row"], steps: int
) -> Float[np.ndarray, "*row value"]:
    """The values that the page shows; explorer.js computes the same."""
    values: np.ndarray = largest[..., None] * (codes / np.float32(steps)) ** 2
    return values.astype(np.float32)


def packed(arrays: Mapping[str, np.ndarray]) -> tuple[str, Layout]:
    """The arrays as one string, and the offset, dtype and shape of each."""
    # A browser reads 4-byte numbers only at offsets divisible by 4: the widest dtypes come first.
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    layout: Layout = {}
    offset = 0
    for name, array in ordered:
        layout[name] = {"type": str(array.dtype), "shape": list(array.shape), "at": offset}
        offset += array.nbytes
    return inflatable(b"".join(np.ascontiguousarray(array).tobytes() for _, array in ordered)), layout


def unpacked(text: str, layout: Layout) -> dict[str, np.ndarray]:
    """The arrays of a packed string."""
    data = gzip.decompress(b64decode(text))
    return {
        name: np.frombuffer(data, entry["type"], int(np.prod(entry["shape"])), entry["at"]).reshape(entry["shape"])
        for name, entry in layout.items()
    }


def inflatable(data: bytes) -> str:
    """Bytes as text that loader.js decompresses."""
    # Level 9 takes ten times as long on a table of texts and saves 1 %.
    return b64encode(gzip.compress(data, 6, mtime=0)).decode()


def json_for_script(value: Any) -> str:
    """JSON that is safe inside a script element: no text can close the element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
