"""The lens of a study, loaded as its identity says."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lensplug.errors import LensplugError
from lensplug.study.identity import Identity


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
        module, _, name = identity.model.partition(":")
        try:
            function = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise LensplugError(
                f"the model of this study is loaded by {identity.model!r}, which cannot be imported: {error}. Start"
                " where it can be, or set PYTHONPATH."
            ) from error
        return function(**options, **({} if device is None else {"device": device}))
    from lensplug.loading.load_and_wrap import load

    commit = identity.checkpoint.get("commit", "")
    if commit and not commit.startswith("unknown"):
        options["revision"] = commit
    return load(model or identity.model, device=device, **options)
