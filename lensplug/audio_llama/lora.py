"""LoRA adapters put on a language model with peft, and refused where they are for another one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lensplug.errors import LensplugError


def attach(model: Any, folder: str | Path) -> Any:
    """The model with an adapter on it, every weight of the adapter in its place.

    Raises:
        LensplugError: If peft is not installed, or the adapter does not fit the model.
    """
    try:
        import peft
    except ImportError:
        raise LensplugError("adapters need peft: pip install peft.") from None
    try:
        adapted = peft.PeftModel.from_pretrained(model, folder)
        given = peft.load_peft_weights(str(folder), device="cpu")
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise LensplugError(
            f"the adapter {Path(folder).name!r} does not fit the model: {' '.join(str(error).split())[:600]}"
        ) from error
    # peft itself is silent about weights that it has no place for, and about places without a weight.
    expected = peft.get_peft_model_state_dict(adapted)
    wrong = sorted(set(given) ^ set(expected))
    if wrong:
        shown = ", ".join(wrong[:10]) + (f", ... ({len(wrong)} in all)" if len(wrong) > 10 else "")
        raise LensplugError(
            f"the adapter {Path(folder).name!r} is for another model: these weights are in one and not in the"
            f" other: {shown}."
        )
    return adapted


def refuse_other_base(base: str | Path, adapters: Sequence[str | Path], *, allowed: bool) -> None:
    """An adapter says which model it is for.

    Raises:
        LensplugError: If that is not `base` by its last name, and not `allowed`; or there is no adapter.
    """
    for folder in adapters:
        path = Path(folder) / "adapter_config.json"
        if not path.is_file():
            raise LensplugError(f"{str(folder)!r} is no adapter: it has no adapter_config.json.")
        recorded = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        names = [Path(str(name)).name.lower() for name in (recorded, base)]
        if recorded and names[0] != names[1] and not allowed:
            raise LensplugError(
                f"the adapter {Path(folder).name!r} is for {recorded!r}, and the base is {Path(base).name!r}: give"
                " that base, or allow_other_base=True (--allow-other-base) if it is the same model under another name."
            )
