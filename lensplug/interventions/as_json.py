"""Edits as JSON and back, for what outlives the process: the measurements of a study.

Every edit but `SpliceSAE`, whose SAE is a model of its own. Tensors are kept with all their numbers, in fp32.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.interventions.ablate import Ablate
from lensplug.interventions.edit import Edit
from lensplug.interventions.knockout import Knockout
from lensplug.interventions.places import Region, Seconds, Words
from lensplug.interventions.replace import Replace
from lensplug.interventions.scale import Scale
from lensplug.interventions.steer import Steer
from lensplug.validation.arguments import described

CLASSES: dict[str, Any] = {each.__name__: each for each in (Knockout, Ablate, Steer, Replace, Scale)}
PLACES: dict[str, Any] = {each.__name__: each for each in (Region, Seconds, Words)}


def to_json(edit: Edit) -> dict[str, Any]:
    """An edit as dictionaries, lists, texts and numbers: its class, and what is not as by default.

    Raises:
        LensplugError: If it cannot be written.
    """
    name = type(edit).__name__
    if name not in CLASSES:
        raise LensplugError(f"{described(edit)} cannot be written into a file: {', '.join(CLASSES)} can.")
    stated = {each.name: getattr(edit, each.name) for each in fields(CLASSES[name])}
    defaults = {each.name: each.default for each in fields(CLASSES[name]) if each.default is not MISSING}
    return {
        "edit": name,
        **{
            field: _plain(value, f"{field} of {name}")
            for field, value in stated.items()
            if field not in defaults or value is not defaults[field]
        },
    }


def from_json(stored: Mapping[str, Any]) -> Edit:
    """The edit that was written.

    Raises:
        LensplugError: If there is no such edit, as in a file of a later version.
    """
    if stored.get("edit") not in CLASSES:
        raise LensplugError(f"the file has an edit {stored.get('edit')!r}, this version knows {', '.join(CLASSES)}.")
    options = {field: _read(value) for field, value in stored.items() if field != "edit"}
    edit: Edit = CLASSES[str(stored["edit"])](**options)
    return edit


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, tuple(PLACES.values())):
        stated = {each.name: _plain(getattr(value, each.name), name) for each in fields(PLACES[type(value).__name__])}
        return {"place": type(value).__name__, **stated}
    if isinstance(value, Mapping) or hasattr(value, "cache_dict"):
        pairs = getattr(value, "cache_dict", value).items()
        return {"pairs": [[_plain(key, name), _plain(held, name)] for key, held in pairs]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, name) for item in value]}
    if isinstance(value, list):
        return [_plain(item, name) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), name)
    raise LensplugError(f"{name} is {described(value)}, which cannot be written into a file.")


def _tensor(value: Tensor) -> dict[str, Any]:
    if not value.is_floating_point():
        return {"integers": value.tolist(), "bool": value.dtype == torch.bool}
    numbers = value.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4")
    return {"float32": base64.b64encode(numbers.tobytes()).decode("ascii"), "shape": list(value.shape)}


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "float32" in value:
        numbers = np.frombuffer(base64.b64decode(value["float32"]), dtype="<f4").reshape(value["shape"])
        return torch.from_numpy(numbers.copy())
    if "integers" in value:
        return torch.tensor(value["integers"], dtype=torch.bool if value["bool"] else torch.long)
    if "range" in value:
        return range(*value["range"])
    if "tuple" in value:
        return tuple(_read(item) for item in value["tuple"])
    if "pairs" in value:
        return {_read(key): _read(held) for key, held in value["pairs"]}
    return PLACES[value["place"]](**{name: _read(held) for name, held in value.items() if name != "place"})
