"""The gap: which experts a token takes is on no hook of a TransformerBridge, or on one without positions.

The router of a mixture of experts returns logits, weights and indices for all tokens in a row; the bridge hooks the
logits alone, `[batch * pos, expert]`. Under this patch each mixture has three hooks, by position:
`mlp.hook_router_logits` `[batch pos expert]`, `mlp.hook_expert_weights` and `mlp.hook_expert_indices`
`[batch pos chosen]`, the last two as HookedTransformer calls them. Edits of weights and indices count (the indices
decide which experts run). Logits are made into both inside the router: an edit of them would change nothing, and is
refused.

A core that no table knows stays as it is inside its layers: there `routers_of` finds the router by what it returns.
One that returns probabilities in place of logits (Gemma 4) has the last two hooks alone.

Checked against transformer-lens 3.9.0 and 4.3.0, and the routers of transformers 5.24 that return logits, weights and
indices: Mixtral, Qwen2-MoE, Qwen3-MoE, Qwen3-VL-MoE, DeepSeek-V3, GLM-4-MoE, Gemma 4 and their relatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from lensplug.patches.errors import LensplugError, changed_inside
from lensplug.patches.patch import Patch, PatchOfAttributes, PatchOfParts

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
                parts += [_Points(mlp, points), _TellsShape(mlp, router), router]
        for layer, found in getattr(model, "routers", {}).items():
            block = model.blocks[layer]
            points = {name: HookPoint().train(block.training) for name in (HOOKS if found.gives_logits else HOOKS[1:])}
            router = _Router(found.module, points)
            parts += [_Points(block, points), _TellsShape(block.original_component, router), router]
        super().__init__(model, parts)


@dataclass(frozen=True)
class Found:
    """A router that was seen at work."""

    module: nn.Module
    experts: int
    chosen: int
    gives_logits: bool
    """Whether what it returns first are logits, and not the probabilities made of them."""


@contextmanager
def routers_of(layers: Sequence[nn.Module]) -> Iterator[dict[int, Found]]:
    """The routers of layers, by what they return while the scope lasts: logits, weights and indices.

    A layer with several has none of them here: a hook's name has a place for one.
    """
    routers: dict[int, Found] = {}

    def note(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, tuple) or len(output) != len(HOOKS):
                return
            logits, weights, indices = output
            if all(isinstance(value, Tensor) for value in output) and _are_indices(indices, weights):
                sums = logits.detach().float().sum(dim=-1)
                is_even = bool((logits >= 0).all()) and bool(((sums - 1).abs() < 1e-2).all())
                routers[layer] = Found(module, logits.shape[-1], indices.shape[-1], not is_even)

        return hook

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            named = [part for part in layer.modules() if "router" in type(part).__name__.lower()]
            for part in named if len(named) == 1 else ():
                stack.callback(part.register_forward_hook(note(number)).remove)
        yield routers


def _are_indices(indices: Tensor, weights: Tensor) -> bool:
    return not indices.is_floating_point() and indices.shape == weights.shape and weights.is_floating_point()


def is_mixture(mlp: Any | None) -> bool:
    """Whether this is a mixture of experts with a router of its own; a dense layer of such a model is not."""
    from transformer_lens.model_bridge.generalized_components import MoEBridge, MoERouterBridge

    return type(mlp) is MoEBridge and type(getattr(mlp, "gate", None)) is MoERouterBridge


class _Points(PatchOfAttributes):
    """The hooks of a router, on its mixture or, where it is somewhere in a layer, on its block."""


class _TellsShape(Patch):
    """A mixture, or a layer, that tells its router how many positions each example has."""

    def __init__(self, target: Any, router: _Router) -> None:
        super().__init__(target)
        self._router = router

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What it computes, behind what its router is told."""
        stream = args[0] if args else kwargs["hidden_states"]
        self._router.shape = stream.shape[:2]
        return self._forward(*args, **kwargs)


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
        shown = [
            self._points[name](value.reshape(*self.shape, -1)).view(value.shape) if name in self._points else value
            for name, value in zip(HOOKS, routed, strict=True)
        ]
        if not torch.equal(shown[0], routed[0]):
            raise LensplugError(
                "a hook edits hook_router_logits, from which the router has made its choice already: edit"
                " mlp.hook_expert_weights or mlp.hook_expert_indices."
            )
        return tuple(shown)
