"""Names of hooks that a model does not have, or that would not fire, are refused before anything runs."""

from __future__ import annotations

import difflib
from typing import Any

from lensplug.caching import NamesFilter
from lensplug.errors import LensplugError

NEED_A_SETTING = {
    "hook_result": "use_attn_result",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
    **dict.fromkeys(("hook_q_input", "hook_k_input", "hook_v_input"), "use_split_qkv_input"),
}
"""Hooks that are silent without a setting of the TransformerLens model."""


def refuse_unknown_hooks(model: Any, names: NamesFilter) -> None:
    """TransformerLens 3.9 ignores a misspelt name silently, and one that does not fire without a setting.

    Args:
        model: A HookedTransformer or a TransformerBridge.
        names: A function of the name is not asked.
    """
    if names is None or callable(names):
        return
    for name in [names] if isinstance(names, str) else names:
        setting = NEED_A_SETTING.get(name.rpartition(".")[2])
        if setting is not None and not getattr(model.cfg, setting, False):
            raise LensplugError(f"{name!r} fires only after lens.model.set_{setting}(True).")
        if name not in model.hook_dict:
            near = difflib.get_close_matches(name, model.hook_dict, n=3)
            hint = f" Did you mean {', '.join(map(repr, near))}?" if near else " See lens.model.hook_dict."
            raise LensplugError(f"{name!r} is no hook of this model.{hint}")
