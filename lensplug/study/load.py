"""The lens of a study, loaded as its identity says."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from lensplug.errors import LensplugError
from lensplug.provenance.public_names import public_name
from lensplug.study.identity import Identity
from lensplug.validation.arguments import described


def refuse_other_lens(identity: Identity, lens: Any) -> None:
    """Refuse a lens in memory that was made with other options than the study's.

    Its weights are compared with those of the results that are there (`Worker`).

    Raises:
        LensplugError: If dtype, engine, processing or name differ.
    """
    if not hasattr(lens, "core"):
        raise LensplugError(f"lens is {described(lens)}, expected what lensplug.load, wrap or tiny return.")
    asked = {"dtype": "auto", "engine": "auto", "process_weights": False, **identity.load}
    found: dict[str, Any] = {
        "dtype": str(lens.core.dtype).removeprefix("torch."),
        "engine": lens.engine,
        "process_weights": lens.process_weights,
    }
    if identity.checkpoint["kind"] != "function":
        asked["model"], found["model"] = public_name(identity.model), public_name(lens.core.name)
    differing = [name for name, value in found.items() if asked[name] not in ("auto", value)]
    if differing:
        fields = "; ".join(f"{name}: {asked[name]!r} there, {found[name]!r} given" for name in differing)
        raise LensplugError(f"the lens is not what the study is of. What differs is {fields}. Leave lens= out.")


def function_of(model: str) -> Callable[..., Any]:
    """The function that loads a study's model, "module:function".

    Raises:
        LensplugError: If it cannot be imported, or is no function.
    """
    module, _, name = model.partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise LensplugError(
            f"the model of this study is loaded by {model!r}, which cannot be imported: {error}. Start where it can be,"
            " or set PYTHONPATH."
        ) from error
    if not callable(function):
        raise LensplugError(f"{model!r} is {described(function)}, expected a function that returns a lens.")
    found: Callable[..., Any] = function
    return found


def load_lens(identity: Identity, device: str | None, model: str | None = None) -> Any:
    """Load the model of a study.

    Args:
        identity: Of the study.
        device: Where to; as `lensplug.load` chooses where it is None.
        model: Where the folder of the model is on this machine, if elsewhere.

    Raises:
        LensplugError: If it cannot be loaded.
    """
    options = dict(identity.load)
    if identity.checkpoint["kind"] == "function":
        function = function_of(identity.model)
        return function(**options, **({} if device is None else {"device": device}))
    from lensplug.loading.load_and_wrap import load

    commit = identity.checkpoint.get("commit", "")
    if commit and not commit.startswith("unknown"):
        options["revision"] = commit
    return load(model or identity.model, device=device, **options)
