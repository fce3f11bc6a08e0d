"""A result's fields as one file: tensors in the safetensors format, everything else in its header as JSON.

`lensplug.read` (`saved_results`) makes results of it again. Nothing in the file is code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lensplug.analysis.attention.uniform_attention import EvenLayer
from lensplug.analysis.provenance import Provenance
from lensplug.files.atomic_write import write_bytes
from lensplug.files.writable import file_to_write
from lensplug.provenance.versions import versions

FORMAT = 1
"""The version of the format: raised when a file of it cannot be read as one of the last."""
PARTS = {kind.__name__: kind for kind in (Provenance, EvenLayer)}
"""Types that occur in results, besides tensors, texts and numbers."""
SMALL = 100_000
"""Maximum number of entries of a tensor that a header holds: what all examples share, such as the steps of a curve."""
HEADER = "lensplug"
"""The entry of the safetensors header."""


def save_fields(result: Any, path: str | Path) -> Path:
    """Write a result, a dataclass, to a file, which appears only when it is whole.

    Raises:
        LensplugError: If it cannot be written there.
    """
    return write_bytes(file_to_write(path), to_bytes(result))


def to_bytes(result: Any) -> bytes:
    """A result as the bytes of a file."""
    tensors: dict[str, Tensor] = {}
    header = {
        "format": FORMAT,
        "versions": versions("lensplug"),
        "kind": type(result).__name__,
        "fields": _fields_of(result, "", tensors),
    }
    content: bytes = save(tensors, metadata={HEADER: json.dumps(header, allow_nan=False)})
    return content


def decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What was encoded.

    Raises:
        KeyError: If the file lacks a tensor, or the header says what this version does not know.
    """
    if isinstance(value, list):
        return [decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "numbers" in value:
        numbers = torch.tensor(decoded(value["numbers"], tensors), dtype=getattr(torch, value["dtype"]))
        return numbers.reshape(value["shape"])
    if "float" in value:
        return float(value["float"])
    if "tuple" in value:
        return tuple(decoded(item, tensors) for item in value["tuple"])
    if "mapping" in value:
        return {key: decoded(item, tensors) for key, item in value["mapping"].items()}
    if "part" in value:
        return PARTS[value["part"]](**{name: decoded(item, tensors) for name, item in value["fields"].items()})
    columns = {name: decoded(column, tensors) for name, column in value["table"].items()}
    arrays = {name: column.numpy() if isinstance(column, Tensor) else column for name, column in columns.items()}
    return import_module("pandas").DataFrame(arrays)


def _fields_of(value: Any, prefix: str, tensors: dict[str, Tensor] | None) -> dict[str, Any]:
    return {
        field_.name: encoded(getattr(value, field_.name), prefix + field_.name, tensors) for field_ in fields(value)
    }


def encoded(value: Any, name: str = "", tensors: dict[str, Tensor] | None = None) -> Any:
    """A value as JSON; tensors go under their names into `tensors`, or where there is none are small, and written out.

    Raises:
        TypeError: If a tensor is too large to be written out.
    """
    if isinstance(value, Tensor) and tensors is not None:
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [encoded(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): encoded(item, f"{name}.{key}", tensors) for key, item in value.items()}}
    if type(value).__name__ in PARTS and is_dataclass(value):
        return {"part": type(value).__name__, "fields": _fields_of(value, f"{name}.", tensors)}
    if isinstance(value, Tensor):
        if value.numel() > SMALL:
            raise TypeError(f"{name or 'a value'} is a tensor of {value.numel()} entries, more than a header holds")
        numbers = [encoded(number) for number in value.flatten().tolist()]
        return {"numbers": numbers, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    return {"table": {column: encoded(_column(value[column]), f"{name}.{column}", tensors) for column in value}}


def _column(column: Any) -> Any:
    """A column of a table: numbers as a tensor, texts as a list."""
    values = column.to_numpy()
    return torch.from_numpy(values.copy()) if values.dtype.kind in "biuf" else column.tolist()
