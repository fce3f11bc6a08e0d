"""Results in files: what an analysis returned outlives the process that made it.

One file for a result, in the safetensors format: its tensors under their names, and in the header, as JSON, what the
result is, its labels, its provenance and the version of this format. Nothing in it is code, and no model is needed to
open it. Other programs read the tensors with safetensors alone.

When not to use it: for a table to share, `to_dataframe().to_csv(...)` or `.to_parquet(...)`; for a page, `views`.

    heads = analysis.head_specialization(cache, inputs.modality, query=-1)
    heads.save("heads.safetensors")
    lensplug.read("heads.safetensors")          # the same result: numbers, labels, provenance, figure
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import torch
from beartype.door import is_bearable
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lensplug.analysis.attention.uniform_attention import EvenLayer
from lensplug.analysis.result import Provenance, Result
from lensplug.errors import LensplugError
from lensplug.files.atomic_write import write_bytes
from lensplug.files.writable import file_to_write
from lensplug.provenance.versions import versions

FORMAT = 1
"""The version of the format: raised when a file of it cannot be read as one of the last."""
PARTS = {kind.__name__: kind for kind in (Provenance, EvenLayer)}
"""Types that occur in results, besides tensors, texts and numbers."""
HEADER = "lensplug"
"""The entry of the safetensors header."""


def save_result(result: Result, path: str | Path) -> Path:
    """Write a result to a file, which appears only when it is whole.

    Raises:
        LensplugError: If it cannot be written there.
    """
    target = file_to_write(path)
    tensors: dict[str, Tensor] = {}
    header = {
        "format": FORMAT,
        "versions": versions("lensplug"),
        "kind": type(result).__name__,
        "fields": _fields_of(result, "", tensors),
    }
    return write_bytes(target, save(tensors, metadata={HEADER: json.dumps(header, allow_nan=False)}))


def read(path: str | Path) -> Result:
    """Read a result that `result.save(path)` wrote; its tensors are on the CPU.

    Args:
        path: The file.

    Returns:
        A result of the class that was saved, equal to it.

    Raises:
        LensplugError: If there is no such file, it holds something else, or another version of lensplug wrote it in a
            way that this one does not read.
    """
    try:
        with safe_open(str(Path(path).expanduser()), "pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
            if not isinstance(header, dict):
                raise _no_result(path, "it is a safetensors file without a result in its header")
            kind = _kind(header, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except LensplugError:
        raise
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise _no_result(path, str(error)) from error
    try:
        values = {name: _decoded(value, tensors) for name, value in header["fields"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _no_result(path, f"its header is broken ({error!r})") from error
    return _made(kind, values, header, path)


def _kind(header: Mapping[str, Any], path: str | Path) -> type[Result]:
    """The class of a saved result.

    Raises:
        LensplugError: If this lensplug does not know it, or the format.
    """
    if header.get("format") != FORMAT:
        raise LensplugError(
            f"{str(path)!r} has a result in format {header.get('format')!r}, written by {_writer(header)}; this version"
            f" reads format {FORMAT}: open it with the other version, or make it again."
        )
    kind = getattr(import_module("lensplug.analysis"), str(header.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, Result)):
        raise LensplugError(
            f"{str(path)!r} has a result of the kind {header.get('kind')!r}, written by {_writer(header)}, which this"
            " version does not know."
        )
    return kind


def _made(kind: type[Result], values: Mapping[str, Any], header: Mapping[str, Any], path: str | Path) -> Result:
    """The result of these fields, each of the type that the class says."""
    expected = {field_.name: field_ for field_ in fields(kind)}  # type: ignore[arg-type]
    required = {
        name for name, field_ in expected.items() if field_.default is MISSING and field_.default_factory is MISSING
    }
    if not required <= set(values) <= set(expected):
        differing = ", ".join(sorted(required - set(values)) + sorted(set(values) - set(expected)))
        raise LensplugError(
            f"{str(path)!r} has a {kind.__name__} written by {_writer(header)}, whose fields are others ({differing}):"
            " open it with that version, or make it again."
        )
    pandas = import_module("pandas")
    hints = get_type_hints(kind, localns={"pd": pandas})
    for name, value in values.items():
        if not is_bearable(value, hints[name]):
            raise _no_result(path, f"its field {name!r} is not what a {kind.__name__} has there")
    return kind(**values)


def _fields_of(value: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        field_.name: _encoded(getattr(value, field_.name), prefix + field_.name, tensors) for field_ in fields(value)
    }


def _encoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; tensors go under their names into `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [_encoded(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _encoded(item, f"{name}.{key}", tensors) for key, item in value.items()}}
    if type(value).__name__ in PARTS and is_dataclass(value):
        return {"part": type(value).__name__, "fields": _fields_of(value, f"{name}.", tensors)}
    return {"table": {column: _encoded(_column(value[column]), f"{name}.{column}", tensors) for column in value}}


def _column(column: Any) -> Any:
    """A column of a table: numbers as a tensor, texts as a list."""
    values = column.to_numpy()
    return torch.from_numpy(values.copy()) if values.dtype.kind in "biuf" else column.tolist()


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What was encoded.

    Raises:
        KeyError: If the file lacks a tensor, or the header says what this version does not know.
    """
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "float" in value:
        return float(value["float"])
    if "tuple" in value:
        return tuple(_decoded(item, tensors) for item in value["tuple"])
    if "mapping" in value:
        return {key: _decoded(item, tensors) for key, item in value["mapping"].items()}
    if "part" in value:
        return PARTS[value["part"]](**{name: _decoded(item, tensors) for name, item in value["fields"].items()})
    columns = {name: _decoded(column, tensors) for name, column in value["table"].items()}
    arrays = {name: column.numpy() if isinstance(column, Tensor) else column for name, column in columns.items()}
    return import_module("pandas").DataFrame(arrays)


def _writer(header: Mapping[str, Any]) -> str:
    versions = header.get("versions")
    return (
        f"lensplug {versions['lensplug']}"
        if isinstance(versions, dict) and "lensplug" in versions
        else "another lensplug"
    )


def _no_result(path: str | Path, why: str) -> LensplugError:
    return LensplugError(f"{str(path)!r} cannot be read as a result: {why}. Give a file that result.save(path) wrote.")
