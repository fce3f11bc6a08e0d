"""The gap: in a TransformerBridge an edit of `hook_resid_mid` reaches the MLP, and not the residual stream.

The bridge's hook of that name is the input of the norm before the MLP. By then Hugging Face's layer has put the stream
aside, and adds the MLP's output to what it was before the edit: patching it, or ablating, does a part of what it says,
without a word. Under this patch the hook fires on the stream itself, as in HookedTransformer.

Checked against transformer-lens 3.9.0 and 4.3.0, with the layers of transformers 5.24 that `core` knows: norms
before attention and MLP, and, for Gemma 3, behind them too.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from lensplug.patches.patch import Patch, PatchOfParts
from lensplug.patches.placement import is_placed


class BridgeResidMid(PatchOfParts):
    """While applied, `hook_resid_mid` of a bridge is the stream. To be applied before `HookNames`."""

    def __init__(self, model: Any) -> None:
        """Keep `model`, a TransformerBridge of a decoder; nothing is changed before `apply`."""
        points = [HookPoint().train(block.training) for block in model.blocks]
        pairs = list(zip(model.blocks, points, strict=True))
        super().__init__(
            model, [part for block, point in pairs for part in (_Block(block, point), _Layer(block, point))]
        )


class _Block(Patch):
    def __init__(self, block: Any, point: HookPoint) -> None:
        super().__init__(block)
        self._point = point

    def _changes(self) -> dict[str, Any]:
        return {"hook_resid_mid": self._point}


class _Layer(Patch):
    """The Hugging Face layer inside, whose parts are the bridge's."""

    relies_on = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")

    def __init__(self, block: Any, point: HookPoint) -> None:
        super().__init__(block.original_component)
        self._point = point

    def _changes(self) -> dict[str, Any]:
        # A layer that accelerate moves to another device has a forward of its hook's, which calls this one.
        return {"_old_forward" if is_placed(self.target) else "forward": self.forward}

    def forward(self, hidden_states: Float[Tensor, "batch pos d_model"], **kwargs: Any) -> Tensor:
        """The layer's own forward, with the hook between its halves."""
        layer = self.target
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        around = hasattr(layer, "pre_feedforward_layernorm")
        if around:
            attended = layer.post_attention_layernorm(attended)
        middle: Tensor = self._point(hidden_states + attended)
        del hidden_states, attended
        if around:
            mlp_output: Tensor = layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(middle)))
        else:
            mlp_output = layer.mlp(layer.post_attention_layernorm(middle))
        return middle + mlp_output
