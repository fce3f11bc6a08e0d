"""Gated MLPs whose backward pass goes through a few positions at a time, for either engine.

The gap: a backward pass through a gated MLP holds six tensors of `[pos d_mlp]` at once, most of what it needs of a
block that is computed again (`checkpointed_blocks`); each is several times the residual stream. An MLP mixes no
positions: under this patch it keeps its input alone, and its backward pass computes a few positions again, takes their
gradient, and forgets them. The input is kept before the output is made, so that a checkpointed block that is computed
again leaves the output out: the time is the same. Gradients are those of all positions at once, to rounding.

An MLP with a hook inside runs as ever, all positions at once, and so does one whose parameters need gradients. Hooks on
what enters it and what leaves it are called as ever.

Checked against TransformerLens 3.9, and 4.3 for the bridge, `GatedMLP.forward` and `GatedMLPBridge.forward` around the
MLPs of Llama and its relatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lensplug.patches.hook_points import has_hooks, seen
from lensplug.patches.modules import every_module
from lensplug.patches.patch import Patch, PatchOfParts

CHUNK_BYTES = 2**25
"""Approximate memory of the positions that are computed at once, in fp32, with their gradients."""
AT_ONCE = 6
"""How many tensors of `[pos d_mlp]` these are."""


class MLPByPositions(PatchOfParts):
    """While applied, gated MLPs take gradients a few positions at a time; other MLPs are left alone."""

    def __init__(self, model: Any) -> None:
        """Keep `model`; nothing is changed before `apply`."""
        parts = [part for block in model.blocks if (part := _part_of(getattr(block, "mlp", None))) is not None]
        super().__init__(model, parts)


def _part_of(mlp: Any) -> _MLP | None:
    # By their names: TransformerLens 4 has no HookedTransformer's MLP to import.
    kind = type(mlp).__name__
    if kind == "GatedMLP" and not mlp.cfg.is_layer_norm_activation():
        return _HookedMLP(mlp)
    if kind == "GatedMLPBridge" and not getattr(mlp, "_use_processed_weights", False):
        out = getattr(mlp.out, "original_component", None)
        return _BridgeMLP(mlp) if type(out) is nn.Linear else None
    return None


class _MLP(Patch):
    """One MLP. Its gradient needs what comes before the last product; that of the product is known."""

    def _changes(self) -> dict[str, Any]:
        mlp = self.target
        edges = [getattr(mlp, name, None) for name in ("hook_in", "hook_out")]
        self._inner = [module for module in every_module(mlp) if all(module is not edge for edge in (mlp, *edges))]
        self._forward = mlp.forward
        return {"forward": self.forward}

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The MLP; the old way unless a gradient of its input alone is taken, and no hook sees the inside."""
        is_needed = x.requires_grad and torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)
        if not is_needed or any(map(has_hooks, self._inner)) or any(p.requires_grad for p in self.target.parameters()):
            whole: Tensor = self._forward(x)
            return whole
        return self.by_positions(x)

    def by_positions(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The output, whose backward pass knows the input only."""
        output: Tensor = _KeepInput.apply(x, self)
        with torch.no_grad():  # a block that is computed again does not come here: it needs nothing more
            for chunk in self.chunks(x):
                output[:, chunk] = self.output(x[:, chunk])
        return output

    def chunks(self, x: Float[Tensor, "batch pos d_model"]) -> Iterator[slice]:
        """The positions, a few at a time."""
        size = max(1, CHUNK_BYTES // (len(x) * self.target.W_gate.shape[1] * 4 * AT_ONCE))
        return (slice(start, start + size) for start in range(0, x.shape[1], size))

    def output(self, x: Float[Tensor, "batch few d_model"]) -> Float[Tensor, "batch few d_model"]:
        """Of a few positions."""
        raise NotImplementedError

    def post(self, x: Float[Tensor, "batch few d_model"]) -> Float[Tensor, "batch few d_mlp"]:
        """What the last weight is multiplied with."""
        raise NotImplementedError

    def out_weight(self) -> Float[Tensor, "d_model d_mlp"]:
        """The last weight."""
        raise NotImplementedError


class _HookedMLP(_MLP):
    relies_on = ("W_gate", "W_in", "W_out", "b_in", "act_fn")

    def output(self, x: Tensor) -> Tensor:
        output: Tensor = self._forward(x)
        return output

    def post(self, x: Tensor) -> Tensor:
        mlp = self.target
        pre, linear = F.linear(x, mlp.W_gate.T.contiguous()), F.linear(x, mlp.W_in.T.contiguous())
        post: Tensor = mlp.act_fn(pre) * linear + mlp.b_in
        return post

    def out_weight(self) -> Tensor:
        weight: Tensor = self.target.W_out.T
        return weight


class _BridgeMLP(_MLP):
    relies_on = ("gate", "in", "out", "hook_in", "hook_out", "original_component")

    def by_positions(self, x: Tensor) -> Tensor:
        mlp = self.target
        return seen(mlp.hook_out, super().by_positions(seen(mlp.hook_in, x)))

    def output(self, x: Tensor) -> Tensor:
        output: Tensor = self.target.original_component(x)
        return output

    def post(self, x: Tensor) -> Tensor:
        mlp = self.target
        post: Tensor = mlp.original_component.act_fn(mlp.gate(x)) * getattr(mlp, "in")(x)
        return post

    def out_weight(self) -> Tensor:
        weight: Tensor = self.target.out.original_component.weight
        return weight


class _KeepInput(torch.autograd.Function):
    """An MLP's output that is still to be made, and its backward pass from the input that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mlp: _MLP) -> Tensor:
        ctx.save_for_backward(x)
        ctx.mlp = mlp
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        mlp, of_x = ctx.mlp, torch.empty_like(x)
        for chunk in mlp.chunks(x):
            few = x[:, chunk].detach().requires_grad_()
            with torch.enable_grad():
                post = mlp.post(few)
            (of_x[:, chunk],) = torch.autograd.grad(post, few, gradient[:, chunk] @ mlp.out_weight())
        return of_x, None
