"""The gap: a TransformerBridge has several names for one hook, none of them HookedTransformer's alone.

`blocks.0.hook_in` and `blocks.0.hook_resid_pre` are one hook point; a cache holds both, a hook that is called for a
filter of names is told the first. Under this patch every hook point has the one name that HookedTransformer has for it,
and those that HookedTransformer lacks have none. Names that fire only after a setting (`hook_result` after
`set_use_attn_result`) are there after it. `stop_at_layer`, which the bridge finds by a name of its own, means what it
means there: with the number of layers it gives the residual stream after the last, and not the logits.

`enable_compatibility_mode` would make the names anew, and is refused meanwhile: call it before.

Checked against transformer-lens 3.9.0 and 4.3.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import reduce
from typing import Any

from lensplug.patches.errors import LensplugError
from lensplug.patches.patch import Patch, PatchOfParts, in_force
from transformer_lens.hook_points import HookPoint

OF_A_BLOCK = (
    "ln1.hook_scale", "ln1.hook_normalized", "ln1_post.hook_scale", "ln1_post.hook_normalized",
    "ln2.hook_scale", "ln2.hook_normalized", "ln2_post.hook_scale", "ln2_post.hook_normalized",
    "attn.q_norm.hook_scale", "attn.q_norm.hook_normalized", "attn.k_norm.hook_scale", "attn.k_norm.hook_normalized",
    "attn.hook_k", "attn.hook_q", "attn.hook_v", "attn.hook_z", "attn.hook_attn_scores", "attn.hook_pattern",
    "attn.hook_result", "attn.hook_rot_k", "attn.hook_rot_q", "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post",
    "hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in", "hook_attn_out", "hook_mlp_out",
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post",
)  # fmt: skip
"""HookedTransformer's names in a block, in its order; the bridge has them as attributes, for points of other names."""

BEHIND = ("ln_final.hook_scale", "ln_final.hook_normalized", "unembed.hook_in", "unembed.hook_out")
"""The same behind the blocks."""


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
        points = dict(_points(model))
        super().__init__(model, [_Model(model, points), *(_Name(point, name) for name, point in points.items())])


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

    def __init__(self, model: Any, points: dict[str, Any]) -> None:
        super().__init__(model)
        self._points = points

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        self._run_with_cache = self.target.run_with_cache
        return {
            "forward": self.forward,
            "_hook_registry": self._points,
            "_add_aliases_to_hooks": self._leave_out_what_does_not_fire,
            "run_with_cache": self.run_with_cache,
            "enable_compatibility_mode": self._refuse,
        }

    def _leave_out_what_does_not_fire(self, hooks: dict[str, Any]) -> None:
        for name in self._points:
            if self.target._gated_hook_reason(name) is not None:
                hooks.pop(name, None)

    def forward(self, *args: Any, stop_at_layer: int | None = None, **kwargs: Any) -> Any:
        """TransformerBridge.forward, which also stops after the last layer."""
        with in_force(_BeforeTheNorm(self.target)) if stop_at_layer == self.target.cfg.n_layers else nullcontext():
            return self._forward(*args, stop_at_layer=stop_at_layer, **kwargs)

    def run_with_cache(self, *args: Any, stop_at_layer: int | None = None, **kwargs: Any) -> Any:
        """TransformerBridge.run_with_cache, which leaves stopping to a hook of a name that is not there now."""
        if stop_at_layer is None:
            return self._run_with_cache(*args, **kwargs)
        last = stop_at_layer == self.target.cfg.n_layers
        with in_force(_BeforeTheNorm(self.target)) if last else _stopping(self.target.blocks, stop_at_layer):
            return self._run_with_cache(*args, stop_at_layer=stop_at_layer, **kwargs)

    def _refuse(self, *args: Any, **kwargs: Any) -> None:
        raise LensplugError(
            "enable_compatibility_mode makes the names of hooks anew, and processes weights: wrap again with"
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


@contextmanager
def _stopping(blocks: Any, layer: int) -> Iterator[None]:
    """The blocks end a pass before the given layer, as the bridge's own forward lets them."""
    before = [getattr(block, "_stop_at_layer_idx", None) for block in blocks]

    def put_back() -> None:
        for block, old in zip(blocks, before, strict=True):
            block._stop_at_layer_idx = old

    try:
        try:
            for block in blocks:
                block._stop_at_layer_idx = layer % len(blocks) if layer < 0 else layer
            yield
        finally:
            put_back()
    finally:
        put_back()  # an interrupt may have come in the midst of the first


def _points(model: Any) -> Iterator[tuple[str, Any]]:
    """HookedTransformer's names, in its order, with the hook points that a bridge has for them."""
    yield "hook_embed", model.hook_embed
    for layer, block in enumerate(model.blocks):
        for name in OF_A_BLOCK:
            if (point := _at(block, name)) is not None:
                yield f"blocks.{layer}.{name}", point
    for name in BEHIND:
        yield name, _at(model, name)


def _at(module: Any, path: str) -> Any:
    """The hook point of that name; None where the module lacks it."""
    found = reduce(lambda held, name: getattr(held, name, None), path.split("."), module)
    return found if isinstance(found, HookPoint) else None
