"""The gap: a TransformerBridge has several names for one hook, none of them HookedTransformer's alone.

`blocks.0.hook_in` and `blocks.0.hook_resid_pre` are one hook point; a cache holds both, a hook that is called for a
filter of names receives the first. Under this patch every hook point has the one name that HookedTransformer has for
it: `hook_dict` and caches list each once, and those that HookedTransformer lacks not at all. Names that fire only after
a setting (`hook_result` after `set_use_attn_result`) are there after it. `stop_at_layer` with the number of layers
gives the residual stream after the last, as there, and not the logits.

Who asks by the bridge's own names is understood, as TransformerLens's tools ask: in `hook_dict[...]`, hooks,
`names_filter` and what `run_with_cache` returns; a hook receives the name that it was requested by. A function of the
name is asked for HookedTransformer's names; where it takes none of them, for the bridge's.

`enable_compatibility_mode` would recreate the names, and is refused meanwhile: call it before.

Checked against transformer-lens 3.9.0 and 4.3.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, reduce
from typing import Any

from transformer_lens.hook_points import HookPoint, _AliasedHookPoint

from lensplug.patches.bridge.routing import HOOKS, is_mixture
from lensplug.patches.errors import LensplugError
from lensplug.patches.patch import Patch, PatchOfParts, in_force

Hooks = Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]

OF_A_BLOCK = (
    "ln1.hook_scale", "ln1.hook_normalized", "ln1_post.hook_scale", "ln1_post.hook_normalized",
    "ln2.hook_scale", "ln2.hook_normalized", "ln2_post.hook_scale", "ln2_post.hook_normalized",
    "attn.q_norm.hook_scale", "attn.q_norm.hook_normalized", "attn.k_norm.hook_scale", "attn.k_norm.hook_normalized",
    "attn.hook_k", "attn.hook_q", "attn.hook_v", "attn.hook_z", "attn.hook_attn_scores", "attn.hook_pattern",
    "attn.hook_result", "attn.hook_rot_k", "attn.hook_rot_q", "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post",
    "mlp.hook_router_logits", "mlp.hook_expert_weights", "mlp.hook_expert_indices",
    "hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in", "hook_attn_out", "hook_mlp_out",
    "hook_resid_pre", "hook_resid_mid", "hook_per_layer_out", "hook_deepstack", "hook_resid_post",
)  # fmt: skip
"""HookedTransformer's names in a block, in its order; the bridge has them as attributes, for points of other names."""

ROUTING = tuple(f"mlp.{name}" for name in HOOKS)

NEURONS = ("mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post")

BEHIND = ("ln_final.hook_scale", "ln_final.hook_normalized", "unembed.hook_in", "unembed.hook_out")
"""The same behind the blocks."""


SPLIT = ("hook_q_input", "hook_k_input", "hook_v_input")
"""After `set_use_split_qkv_input`, TransformerLens's edge attribution looks for them as `attn.hook_q_input`, ..."""


class HookNames(PatchOfParts):
    """While applied, the hooks of a bridge have HookedTransformer's names, one each.

    with HookNames(bridge):
        logits, cache = bridge.run_with_cache(tokens)
    """

    def __init__(self, model: Any) -> None:
        """Prepare the patch.

        Args:
            model: A TransformerBridge of a decoder with norms before attention and MLP, and a gated MLP.
        """
        # What the bridge calls so of a mixture of experts is its input and its output, and no neurons.
        mixtures = [layer for layer, block in enumerate(model.blocks) if is_mixture(getattr(block, "mlp", None))]
        misleading = {f"blocks.{layer}.{name}" for layer in mixtures for name in NEURONS}
        bridge_points = {name: point for name, point in model.hook_dict.items() if name not in misleading}
        points = Points(dict(_points(model, misleading)), bridge_points)
        super().__init__(model, [_Model(model, points), *(_Name(point, name) for name, point in points.items())])


class Points(dict[str, Any]):
    """Hook points, each listed once, by HookedTransformer's name; asked for by the bridge's, they are found too."""

    def __init__(self, points: dict[str, Any], also: dict[str, Any]) -> None:
        """Keep the hook points to list, and those that are found by other names."""
        super().__init__(points)
        self.all = {**also, **points}

    def __missing__(self, name: str) -> Any:
        """A point that is not listed."""
        return self.all[name]

    def __contains__(self, name: object) -> bool:
        """Whether it is found."""
        return name in self.all

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict."""
        return self.all.get(name, default)

    def copy(self) -> Points:
        """As of a dict."""
        return Points(self, self.all)

    def lists(self, point: Any) -> bool:
        """Whether a point is listed."""
        return dict.get(self, point.name) is point

    def taken_by(self, accepts: Callable[[str], bool]) -> list[str]:
        """The names listed that a function takes; where it takes none, those found besides."""
        return [name for name in self if accepts(name)] or [name for name in self.all if accepts(name)]


class Entries(dict[str, Any]):
    """Activations by HookedTransformer's names, found by the bridge's too."""

    def __init__(self, entries: dict[str, Any], names: dict[str, str]) -> None:
        """Keep the activations, and for each name the one that they are held by."""
        super().__init__(entries)
        self._names = names

    def _held_by(self, name: Any) -> Any:
        plain = str(name).removesuffix("_grad")
        return self._names.get(plain, plain) + str(name)[len(plain) :]

    def __missing__(self, name: str) -> Any:
        """An activation that is held by another name."""
        return dict.__getitem__(self, held_name) if (held_name := self._held_by(name)) != name else _no_entry(name)

    def __contains__(self, name: object) -> bool:
        """Whether it is found."""
        return super().__contains__(name) or super().__contains__(self._held_by(name))

    def __reduce__(self) -> Any:
        """Saved as a dict."""
        return dict, (dict(self),)


def _no_entry(name: str) -> Any:
    raise KeyError(name)


class _Name(Patch):
    def __init__(self, point: Any, name: str) -> None:
        super().__init__(point)
        self._name = name

    def _options(self) -> dict[str, Any]:
        return {"name": self._name}

    def _changes(self) -> dict[str, Any]:
        return {"name": self._name}


class _Model(Patch):
    relies_on = ("_hook_registry", "_add_aliases_to_hooks", "_gated_hook_reason")

    def __init__(self, model: Any, points: Points) -> None:
        super().__init__(model)
        self._points = points

    def _changes(self) -> dict[str, Any]:
        self._forward, self._run_with_cache = self.target.forward, self.target.run_with_cache
        self._run_with_hooks, self._hooks, self._add_hook = (
            self.target.run_with_hooks, self.target.hooks, self.target.add_hook,
        )  # fmt: skip
        return {
            "forward": self.forward,
            "_hook_registry": self._points,
            "_add_aliases_to_hooks": self._what_fires,
            "run_with_cache": self.run_with_cache,
            "run_with_hooks": self.run_with_hooks,
            "hooks": self.hooks,
            "add_hook": self.add_hook,
            "enable_compatibility_mode": self._refuse,
        }

    def _what_fires(self, hooks: dict[str, Any]) -> None:
        for name in self._points:
            if self.target._gated_hook_reason(name) is not None:
                hooks.pop(name, None)
            elif name.endswith(SPLIT):
                block, _, kind = name.rpartition(".")
                hooks[f"{block}.attn.{kind}"] = hooks[name]

    def forward(self, *args: Any, stop_at_layer: int | None = None, **kwargs: Any) -> Any:
        """TransformerBridge.forward, which also stops after the last layer."""
        with in_force(_BeforeTheNorm(self.target)) if stop_at_layer == self.target.cfg.n_layers else nullcontext():
            return self._forward(*args, stop_at_layer=stop_at_layer, **kwargs)

    def run_with_cache(
        self, *args: Any, names_filter: Any = None, stop_at_layer: int | None = None, **kwargs: Any
    ) -> Any:
        """TransformerBridge.run_with_cache, with one entry for each activation, found by any of its names."""
        last = stop_at_layer == self.target.cfg.n_layers
        bridge_names, besides = self._wanted(names_filter)
        with in_force(_BeforeTheNorm(self.target)) if last else nullcontext(), self._listed(besides):
            output, cache = self._run_with_cache(
                *args, names_filter=bridge_names, stop_at_layer=stop_at_layer, **kwargs
            )
        if isinstance(cache, dict):
            return output, Entries(cache, self._names)
        cache.cache_dict = Entries(cache.cache_dict, self._names)
        return output, cache

    @cached_property
    def _names(self) -> dict[str, str]:
        return {name: point.name for name, point in self._points.all.items()}

    def _wanted(self, names_filter: Any) -> tuple[Any, dict[str, Any]]:
        """What to keep, each activation once, and those among it that are not listed."""
        if names_filter is None:
            return lambda name: dict.__contains__(self._points, name), {}
        if isinstance(names_filter, str):
            names = [names_filter]
        else:
            names = self._points.taken_by(names_filter) if callable(names_filter) else list(names_filter)
        points = {name: point for name in names if (point := self._points.get(name)) is not None}
        besides = {name: point for name, point in points.items() if not self._points.lists(point)}
        bridge_names = [name if name in besides or name not in points else points[name].name for name in names]
        return (set(bridge_names).__contains__ if callable(names_filter) else bridge_names), besides

    @contextmanager
    def _listed(self, besides: dict[str, Any]) -> Iterator[None]:
        def put_back() -> None:
            for name in besides:
                self._points.pop(name, None)

        try:
            try:
                self._points.update(besides)
                yield
            finally:
                put_back()
        finally:
            put_back()  # an interrupt may have come in the midst of the first

    def run_with_hooks(self, *args: Any, fwd_hooks: Hooks = (), bwd_hooks: Hooks = (), **kwargs: Any) -> Any:
        """TransformerBridge.run_with_hooks, by any name of a hook."""
        hooks = {"fwd_hooks": self._each(fwd_hooks), "bwd_hooks": self._each(bwd_hooks)}
        return self._run_with_hooks(*args, **hooks, **kwargs)

    def hooks(self, fwd_hooks: Hooks = (), bwd_hooks: Hooks = (), *args: Any, **kwargs: Any) -> Any:
        """TransformerBridge.hooks, by any name of a hook."""
        return self._hooks(self._each(fwd_hooks), self._each(bwd_hooks), *args, **kwargs)

    def add_hook(self, name: Any, hook: Any, *args: Any, **kwargs: Any) -> None:
        """TransformerBridge.add_hook, by any name of a hook."""
        for hook_name, function in self._each([(name, hook)]):
            self._add_hook(hook_name, function, *args, **kwargs)

    def _each(self, hooks: Hooks) -> list[tuple[Any, Any]]:
        """Hooks by name, or by a function that takes names of points that are listed."""
        each: list[tuple[Any, Any]] = []
        for name, function in hooks:
            if not callable(name):
                each.append((name, self._told(name, function)))
                continue
            hook_names = self._points.taken_by(name)
            if listed := {point.name for point in map(self._points.get, hook_names) if self._points.lists(point)}:
                each.append((listed.__contains__, function))
            each += [
                (hook_name, function) for hook_name in hook_names if not self._points.lists(self._points[hook_name])
            ]
        return each

    def _told(self, name: str, function: Any) -> Any:
        """The hook, called with the name under which it was requested."""
        point = self._points.get(name)
        if point is None or point.name == name:
            return function
        return lambda value, hook: function(value, hook=_AliasedHookPoint(name, hook))

    def _refuse(self, *args: Any, **kwargs: Any) -> None:
        raise LensplugError(
            "enable_compatibility_mode recreates the names of hooks, and processes weights: wrap again with"
            " lensplug.wrap(..., process_weights=True), or call it before HookNames."
        )


class _BeforeTheNorm(Patch):
    """A pass ends where the final norm would begin."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.ln_final)

    def _changes(self) -> dict[str, Any]:
        from transformer_lens.model_bridge.exceptions import StopAtLayerException

        def stop(residual: Any, **kwargs: Any) -> None:
            raise StopAtLayerException(residual)

        return {"forward": stop}


def _points(model: Any, misleading: set[str]) -> Iterator[tuple[str, Any]]:
    """HookedTransformer's names, in its order, with the hook points that a bridge has for them."""
    yield "hook_embed", model.hook_embed
    if (positions := _at(model, "pos_embed.hook_out")) is not None:
        yield "hook_pos_embed", positions
    for layer, block in enumerate(model.blocks):
        for name in OF_A_BLOCK:
            whole_name = f"blocks.{layer}.{name}"
            point = None if whole_name in misleading else _at(block, name)
            if point is None and name in ROUTING:  # of a router that is in no component of the bridge
                point = _at(block, name.removeprefix("mlp."))
            if point is not None:
                yield whole_name, point
    for name in BEHIND:
        yield name, _at(model, name)


def _at(module: Any, path: str) -> Any:
    """The hook point of that name; None where the module lacks it."""
    attribute = reduce(lambda parent, name: getattr(parent, name, None), path.split("."), module)
    return attribute if isinstance(attribute, HookPoint) else None
