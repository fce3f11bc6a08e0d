"""A bridge's gated MLP without its intermediate copies: the twin of HookedTransformer's.

The gap: while no gradient is taken, `act(gate) * linear` holds three tensors of `[pos d_mlp]` at once. Under this patch
the product is written into the activation, which is not used elsewhere. Every hook fires as before, with the same
numbers to the bit, and what hooks keep is not written into.

Checked against transformer-lens 3.9.0 and 4.3.0, `GatedMLPBridge.forward` around the MLPs of Llama and its relatives.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.patches.patch import Patch, PatchOfParts


class BridgeMLPInPlace(PatchOfParts):
    """Every gated MLP of a bridge computes in place; one with processed weights is left alone."""

    def __init__(self, model: Any) -> None:
        """Keep `model`, a TransformerBridge; nothing is changed before `apply`."""
        from transformer_lens.model_bridge.generalized_components import GatedMLPBridge

        mlps = [block.mlp for block in model.blocks if type(block.mlp) is GatedMLPBridge]
        plain = [mlp for mlp in mlps if not getattr(mlp, "_use_processed_weights", False)]
        super().__init__(model, [_MLPInPlace(mlp) for mlp in plain])


class _MLPInPlace(Patch):
    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        self._act = self.target.original_component.act_fn
        return {"forward": self.forward}

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The MLP; the old way where a gradient is taken, which in-place writing would break."""
        mlp = self.target
        if torch.is_grad_enabled():
            original_output: Tensor = self._forward(x)
            return original_output
        x = mlp.hook_in(x)
        pre = mlp.gate(x)
        post = self._act(pre)
        post = post.clone() if post is pre else post
        del pre
        post *= getattr(mlp, "in")(x)
        output: Tensor = mlp.hook_out(mlp.out(post))
        return output
