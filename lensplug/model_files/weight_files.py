"""Weight files looked at before anything opens them: whole, inside their folder, and what tensors they have.

A safetensors file begins with eight bytes that say how long its header is, and a header in JSON that says where each
tensor lies. Both are read here, within limits, so that a truncated file is reported with the number of missing bytes.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensplug.errors import LensplugError
from lensplug.model_files.json_files import AGAIN, read_object, refuse_no_file, what_else

LONGEST_HEADER = 100 << 20
"""Bytes; what the safetensors library itself takes at most."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits per number, by dtype."""
WHOLE = ("F64", "F32", "F16", "BF16")
"""The dtypes that weights have which are not quantised."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ORDER = (SINGLE, INDEX, PICKLED, PICKLED_INDEX)
"""In which transformers looks for them."""


@dataclass(frozen=True)
class WeightFiles:
    """Contents of a model's weight files, as known without reading the weights."""

    names: tuple[str, ...]
    """Names of the files."""
    shapes: Mapping[str, tuple[int, ...]]
    """By tensor; empty where the files do not say."""
    tensors: int
    """Upper bound of the number of tensors."""
    numbers: int
    """Upper bound of the total number of weights."""


def weight_files(folder: Path, *, variant: str | None = None, use_safetensors: bool | None = None) -> WeightFiles:
    """The files that transformers would open in a folder, each of them whole.

    Args:
        folder: Folder of a model.
        variant: As `from_pretrained` takes it.
        use_safetensors: Whether to read safetensors only, as for transformers.

    Raises:
        LensplugError: If one is missing, broken, not in the folder, or no regular file.
    """
    spelt = wanted(variant=variant, use_safetensors=use_safetensors)
    first = next((name for name in spelt if _is_there(folder / spelt[name])), None)
    if first is None:
        return WeightFiles((), {}, 0, 0)
    names = of_index(folder / spelt[first]) if first in (INDEX, PICKLED_INDEX) else [spelt[first]]
    for name in names:
        if not _is_there(folder / name):
            raise LensplugError(
                f"{str(folder / name)!r} is not there, one of the {len(names)} weight files that {spelt[first]} names."
                f" {AGAIN}: `hf download` goes on where it stopped."
            )
    if first in (SINGLE, INDEX):
        headers = [safetensors_header(folder / name) for name in names]
        shapes = {tensor: shape for header in headers for tensor, shape in header.items()}
        return WeightFiles(tuple(names), shapes, len(shapes), sum(map(math.prod, shapes.values())))
    for name in names:
        refuse_broken_pickle(folder / name)
    size = sum((folder / name).stat().st_size for name in names)
    return WeightFiles(tuple(names), {}, 64 + size // 256, size)


def wanted(*, variant: str | None, use_safetensors: bool | None) -> dict[str, str]:
    """The files that transformers looks for, in this order, and as the variant spells them."""
    return {
        name: _variant(name, variant)
        for name in ORDER
        if use_safetensors is None or (name in (SINGLE, INDEX)) == use_safetensors
    }


def safetensors_header(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file's tensors.

    Raises:
        LensplugError: If the file is not such a file, or incomplete, with the number of missing bytes.
    """
    refuse_no_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(200)
        if content_kind := what_else(beginning):
            raise LensplugError(f"{str(path)!r} is {content_kind}.")
        if size < 8:
            raise LensplugError(
                f"{str(path)!r} has {size} bytes, too few for the header of a safetensors file. {AGAIN}."
            )
        (length,) = struct.unpack("<Q", beginning[:8])
        if length > LONGEST_HEADER:
            raise LensplugError(f"{str(path)!r} is no safetensors file: its header would have {length} bytes. {AGAIN}.")
        if 8 + length > size:
            raise LensplugError(
                f"{str(path)!r} has {size} bytes, and its header alone has {8 + length}: {8 + length - size} bytes and"
                f" all weights are missing. {AGAIN}."
            )
        file.seek(8)
        text = file.read(length)
    return _shapes(path, text, size - 8 - length)


def refuse_broken_pickle(path: Path) -> None:
    """Raise if a file that `torch.save` wrote is not whole, or would take more memory than it has bytes.

    Such files are archives that are not compressed: members that are would fill memory when they are opened.

    Raises:
        LensplugError: Then.
    """
    refuse_no_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(200)
    if content_kind := what_else(beginning):
        raise LensplugError(f"{str(path)!r} is {content_kind}.")
    if not beginning.startswith(b"PK"):
        return  # the format of torch before 1.6, which torch itself reads to its end
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise LensplugError(
            f"{str(path)!r} has {size} bytes, and its end, where the list of its tensors should be, is missing"
            f" ({error}). {AGAIN}."
        ) from error
    unpacked_size = sum(member.file_size for member in members)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or unpacked_size > size:
        raise LensplugError(
            f"{str(path)!r} is compressed ({unpacked_size} bytes in {size}), which torch.save never does: save its"
            " state dict"
            " anew, torch.save(state_dict, ...)."
        )


def refuse_quantised_weights(path: Path, tensors: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise if weights are stored as integers or in 8 bits or fewer.

    Raises:
        LensplugError: Then.
    """
    for name, entry in tensors.items():
        if name.endswith(("weight", "bias")) and entry["dtype"] not in WHOLE:
            raise LensplugError(
                f"{str(path)!r} stores {name} as {entry['dtype']}, and a core has whole weights ({', '.join(WHOLE)}):"
                " load the checkpoint that it was made of."
            )


def _shapes(path: Path, text: bytes, remaining: int) -> dict[str, tuple[int, ...]]:
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {str(name): dict(entry) for name, entry in header.items()}
        shapes = {name: tuple(map(_whole, entry["shape"])) for name, entry in tensors.items()}
        places = {name: tuple(map(_whole, entry["data_offsets"])) for name, entry in tensors.items()}
        unknown = next((entry["dtype"] for entry in tensors.values() if entry["dtype"] not in BITS), None)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = type(error).__name__ if isinstance(error, RecursionError | KeyError) else error
        raise LensplugError(f"{str(path)!r} has a header that cannot be read ({why}). {AGAIN}.") from error
    if unknown is not None:
        raise LensplugError(f"{str(path)!r} has a dtype that is not known, {unknown!r}. {AGAIN}.")
    end = 0
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        expected = -(-math.prod(shapes[name]) * BITS[tensors[name]["dtype"]] // 8)
        if len(place) != 2 or place[0] != end or place[1] - place[0] != expected:
            raise LensplugError(
                f"{str(path)!r} has a header that contradicts itself: {name} of shape {list(shapes[name])}"
                f" ({tensors[name]['dtype']}) should have {expected} bytes from byte {end}, and has {list(place)}."
                f" {AGAIN}."
            )
        end = place[1]
    if end > remaining:
        raise LensplugError(
            f"{str(path)!r} has {remaining} bytes of weights, and its header tells of {end}: {end - remaining} bytes"
            " are missing,"
            f" as after a download that was cut off. {AGAIN}."
        )
    if end < remaining:
        raise LensplugError(f"{str(path)!r} has {remaining - end} bytes more than its header tells of. {AGAIN}.")
    refuse_quantised_weights(path, tensors)
    return shapes


def of_index(path: Path) -> list[str]:
    """The files that an index names.

    Raises:
        LensplugError: If it is no index, or names files outside its folder.
    """
    places = read_object(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise LensplugError(f"{str(path)!r} has no weight_map, which says in which file each weight is. {AGAIN}.")
    names = sorted(set(places.values()))
    refuse_outside(path, names)
    return names


def refuse_outside(path: Path, names: Iterable[str]) -> None:
    """Raise if a file names others outside its folder.

    Raises:
        LensplugError: Then.
    """
    for name in names:
        if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise LensplugError(f"{str(path)!r} names a file outside its folder, {name!r}: it is not followed.")


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _variant(name: str, variant: str | None) -> str:
    """As transformers spells it: before the last ending, in the index too."""
    stem, _, ending = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{ending}"


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no size")
    return value
