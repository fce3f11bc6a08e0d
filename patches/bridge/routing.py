"""The gap: which experts a token takes is on no hook of a TransformerBridge, or on one without positions.

The router of a mixture of experts returns logits, weights and indices for all tokens in a row; the bridge hooks the
logits alone, `[batch * pos, expert]`. Under this patch each mixture has three hooks, by position:
`mlp.hook_router_logits` `[batch pos expert]`, `mlp.hook_expert_weights` and `mlp.hook_expert_indices`
`[batch pos chosen]`, the last two as HookedTransformer calls them. Edits of weights and indices count (the indices
decide which experts run). Logits are made into both inside the router: an edit of them would change nothing, and is
refused.

Checked against transformer-lens 3.9.0 and 4.3.0, and the routers of transformers 5.24 that return logits, weights and
indices: Mixtral, Qwen2-MoE, Qwen3-MoE, Qwen3-VL-MoE and their relatives.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from lensplug.patches.errors import LensplugError, changed_inside
from lensplug.patches.patch import Patch, PatchOfParts

HOOKS = ("hook_router_logits", "hook_expert_weights", "hook_expert_indices")


class BridgeRouting(PatchOfParts):
    """While applied, the routing of each mixture of experts is on hooks. To be applied before `HookNames`."""

    def __init__(self, model: Any) -> None:
        """Keep `model`, a TransformerBridge; where no block has a router, nothing is changed."""
        parts: list[Patch] = []
        for block in model.blocks:
            mlp: Any = getattr(block, "mlp", None)
            if is_mixture(mlp):
                points = {name: HookPoint().train(block.training) for name in HOOKS}
                router = _Router(mlp.gate, points)
                parts += [_Mixture(mlp, points, router), router]
        super().__init__(model, parts)


def is_mixture(mlp: Any | None) -> bool:
    """Whether this is a mixture of experts with a router of its own; a dense layer of such a model is not."""
    from transformer_lens.model_bridge.generalized_components import MoEBridge, MoERouterBridge

    return type(mlp) is MoEBridge and type(getattr(mlp, "gate", None)) is MoERouterBridge


class _Mixture(Patch):
    def __init__(self, mlp: Any, points: dict[str, HookPoint], router: _Router) -> None:
        super().__init__(mlp)
        self._points, self._router = points, router

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {**self._points, "forward": self.forward}

    def forward(self, hidden_states: Float[Tensor, "batch pos d_model"], **kwargs: Any) -> Any:
        """The mixture; its router is told how many positions each example has."""
        self._router.shape = hidden_states.shape[:2]
        return self._forward(hidden_states, **kwargs)


class _Router(Patch):
    def __init__(self, gate: Any, points: dict[str, HookPoint]) -> None:
        super().__init__(gate)
        self._points = points
        self.shape: torch.Size

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward}

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The router, its outputs through the hooks."""
        routed = self._forward(hidden_states, *args, **kwargs)
        if not isinstance(routed, tuple) or len(routed) != len(HOOKS):
            raise changed_inside("a router returns something else than logits, weights and indices")
        shown = [point(value.view(*self.shape, -1)) for point, value in zip(self._points.values(), routed, strict=True)]
        if not torch.equal(shown[0].flatten(0, 1), routed[0]):
            raise LensplugError(
                "a hook edits hook_router_logits, from which the router has made its choice already: edit"
                " mlp.hook_expert_weights or mlp.hook_expert_indices."
            )
        return tuple(value.flatten(0, 1) for value in shown)
