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
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from beartype.door import is_bearable
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from lensplug.analysis.field_hints import field_hints
from lensplug.analysis.result import Result
from lensplug.analysis.saved_fields import FORMAT, HEADER, decoded
from lensplug.errors import LensplugError
from lensplug.files.destinations import expanded


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
        content = expanded(path).read_bytes()
    except OSError as error:
        raise _no_result(path, error.strerror or str(error)) from error
    return from_bytes(content, path)


def from_bytes(content: bytes, path: str | Path) -> Result:
    """The result in the bytes of a file.

    Args:
        content: What the file holds.
        path: Where it is, for errors.

    Raises:
        LensplugError: As `read`.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(HEADER, "null"))
        if not isinstance(header, dict):
            raise _no_result(path, "it is a safetensors file without a result in its header")
        kind = _kind(header, path)
        tensors = load(content)
    except LensplugError:
        raise
    except (SafetensorError, ValueError, RecursionError, AttributeError) as error:
        raise _no_result(path, str(error)) from error
    return _result_of(kind, header, tensors, path)


def outline(path: str | Path) -> Result:
    """A result in a file without its large tensors: those of two and more axes have shapes and dtypes, and no numbers.

    They are on the device "meta". For files that are read in parts, with safetensors' slices.

    Args:
        path: A file that `result.save(path)` wrote.

    Raises:
        LensplugError: As `read`.
    """
    try:
        with safe_open(str(expanded(path)), "pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
            if not isinstance(header, dict):
                raise _no_result(path, "it is a safetensors file without a result in its header")
            kind = _kind(header, path)
            tensors = {name: _outline_of(file, name) for name in file.keys()}
    except LensplugError:
        raise
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise _no_result(path, str(error)) from error
    return _result_of(kind, header, tensors, path)


def _outline_of(file: Any, name: str) -> Tensor:
    """A tensor of a file; of several axes without its numbers."""
    part = file.get_slice(name)
    shape = part.get_shape()
    if len(shape) < 2:  # single numbers, and columns of tables
        tensor: Tensor = file.get_tensor(name)
        return tensor
    return torch.empty(shape, dtype=part[:0].dtype, device="meta")


def _result_of(
    kind: type[Result], header: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str | Path
) -> Result:
    """The result that a header describes.

    Raises:
        LensplugError: If the header is broken, or of another version.
    """
    try:
        values = {name: decoded(value, tensors) for name, value in header["fields"].items()}
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
    hints = field_hints(kind)
    for name, value in values.items():
        if not is_bearable(value, hints[name]):
            raise _no_result(path, f"its field {name!r} is not what a {kind.__name__} has there")
    return kind(**values)


def _writer(header: Mapping[str, Any]) -> str:
    versions = header.get("versions")
    return (
        f"lensplug {versions['lensplug']}"
        if isinstance(versions, dict) and "lensplug" in versions
        else "another lensplug"
    )


def _no_result(path: str | Path, why: str) -> LensplugError:
    return LensplugError(f"{str(path)!r} cannot be read as a result: {why}. Give a file that result.save(path) wrote.")
