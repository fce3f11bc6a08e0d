"""Resolve hook names and short forms; unknown names are refused before anything runs.

TransformerLens's short form will do: "resid_post" is `blocks.N.hook_resid_post` of every layer, ("resid_post", 3) that
of one, ("scale", 3, "ln1") says which of a block's norms.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from transformer_lens.utilities import get_act_name

from lensplug.errors import LensplugError
from lensplug.running.caching import HookName, NamesFilter
from lensplug.validation.arguments import described

NEED_A_SETTING = {
    "hook_result": "use_attn_result",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
    **dict.fromkeys(("hook_q_input", "hook_k_input", "hook_v_input"), "use_split_qkv_input"),
}
"""Hooks that are silent without a setting of the TransformerLens model."""


def known_hooks(model: Any, names: NamesFilter) -> list[str] | Callable[[str], bool] | None:
    """The hooks that are meant, by their whole names; a function of the name is not asked.

    TransformerLens 3.9 ignores a misspelt name silently, and one that does not fire without a setting.

    Args:
        model: A HookedTransformer or a TransformerBridge.
        names: A name or short form, several of them, or a function.

    Raises:
        LensplugError: If a name is no hook of the model.
    """
    if isinstance(names, type):
        raise LensplugError(f"names_filter is {described(names)}, expected a name, several, or a function of the name.")
    if names is None or callable(names):
        return names
    several: Any = [names] if isinstance(names, str) or _is_short(names) else names
    return [hook_name for name in several for hook_name in hook_names_of(model, name)]


def hook_names_of(model: Any, name: HookName | Callable[[str], bool]) -> list[Any]:
    """The hooks of one name or short form, one for each layer that has it; a function stays as it is.

    Raises:
        LensplugError: If the model has none, or none that fires.
    """
    if callable(name):
        return [name]
    if isinstance(name, str) and name in model.hook_dict:
        return [_firing(model, name)]
    if not isinstance(name, str) and not _is_short(name):
        raise LensplugError(
            f"{name!r} is no name of a hook: give 'blocks.3.hook_resid_post', 'resid_post' (of every layer) or"
            " ('resid_post', 3)."
        )
    matching = [candidate for candidate in dict.fromkeys(_meant(model, name)) if candidate in model.hook_dict]
    if not matching:
        requested = name if isinstance(name, str) else name[0]
        near = difflib.get_close_matches(requested, [*model.hook_dict, *_short_forms(model)], n=3)
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else " See lens.model.hook_dict."
        raise LensplugError(f"{name!r} is no hook of this model.{hint}")
    return [_firing(model, candidate) for candidate in matching]


def _is_short(name: Any) -> bool:
    """Whether this is one name with its layer, ("resid_post", 3), not several names."""
    if not isinstance(name, tuple | list) or len(name) not in (2, 3) or not isinstance(name[0], str):
        return False
    return (
        isinstance(name[1], int) and not isinstance(name[1], bool) and all(isinstance(part, str) for part in name[2:])
    )


def _meant(model: Any, name: HookName) -> list[str]:
    """Hook names that a short form may stand for."""
    layers = model.cfg.n_layers
    if not isinstance(name, str):
        short, layer, *kind = name
        if not -layers <= layer < layers:
            raise LensplugError(f"{name!r}: the model has layers 0 to {layers - 1}.")
        return _in_layer(short, layer % layers, *kind)
    if "." in name:  # the end of a name: "attn.hook_pattern"
        return [hook for hook in model.hook_dict if hook.endswith(f".{name}")]
    model_wide = str(get_act_name(name))
    return [*(hook_name for layer in range(layers) for hook_name in _in_layer(name, layer)), model_wide]


def _in_layer(short: str, layer: int, kind: str | None = None) -> list[str]:
    if "." in short:
        return [f"blocks.{layer}.{short}"]
    short = short.removeprefix("hook_")
    norms = ("ln1", "ln2") if short in ("scale", "normalized") and kind is None else ()
    return [str(get_act_name(short, layer, kind)), *(f"blocks.{layer}.{norm}.hook_{short}" for norm in norms)]


def _short_forms(model: Any) -> list[str]:
    return list(dict.fromkeys(name.rpartition("hook_")[2] for name in model.hook_dict))


def _firing(model: Any, name: str) -> str:
    setting = NEED_A_SETTING.get(name.rpartition(".")[2])
    if setting is not None and not getattr(model.cfg, setting, False):
        raise LensplugError(f"{name!r} fires only after lens.model.set_{setting}(True).")
    return name
