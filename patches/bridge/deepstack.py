"""The gap: features that a model adds to the residual stream between blocks are on no hook of a TransformerBridge.

Qwen3-VL gives its decoder features of earlier layers of its vision tower, one set for each of the first layers, and
adds them to the stream at the image's positions behind those layers. In a bridge `blocks.0.hook_resid_post` lacks them
and `blocks.1.hook_resid_pre` has them, no hook sees them, and `decompose_resid` and its relatives miss them at image
positions. Under this patch they are a term of their block: `blocks.0.hook_deepstack`, `[batch pos d_model]`, zero
where there is no image, whose edits count. It is added at the end of the block, so that the stream that leaves a block
is what enters the next, as in every other model: `resid_post = resid_mid + mlp_out + deepstack`. (Hugging Face's
`hidden_states` are without it: those are what its layers return.)

The model is given them as `deepstack=`, `[layer batch pos d_model]`; without, the term is zero. The caches of
`run_with_cache` decompose with these terms, last: "0_deepstack", "1_deepstack".

Checked against transformer-lens 3.9.0 and 4.3.0, and transformers 5.24.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from lensplug.patches.bridge.block_terms import Terms
from lensplug.patches.hook_points import has_hooks
from lensplug.patches.patch import Patch, PatchOfAttributes, PatchOfParts


class BridgeDeepstack(PatchOfParts):
    """While applied, the first blocks of a bridge add features that are given, by a hook of their own.

    To be applied after `BridgeResidMid` and before `HookNames`.
    """

    def __init__(self, model: Any, layers: int) -> None:
        """Prepare the patch.

        Args:
            model: A TransformerBridge of a decoder.
            layers: How many of the first blocks add features; none: nothing is changed.
        """
        parts: list[Patch] = [Terms(model)] if layers else []
        for index, block in enumerate(model.blocks if layers else ()):
            point = HookPoint().train(block.training) if index < layers else None
            parts += [] if point is None else [_Block(block, {"hook_deepstack": point})]
            parts.append(_Layer(block, index, point))
        super().__init__(model, parts)


class _Block(PatchOfAttributes):
    """The hook, on its block."""


class _Layer(Patch):
    """The Hugging Face layer inside."""

    def __init__(self, block: Any, index: int, point: HookPoint | None) -> None:
        super().__init__(block.original_component)
        self._index, self._point = index, point

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward}

    def forward(
        self,
        hidden_states: Float[Tensor, "batch pos d_model"],
        *,
        deepstack: Float[Tensor, "layer batch pos d_model"] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The layer, and behind it what is added; of layers that add nothing, the layer."""
        output: Tensor = self._forward(hidden_states, **kwargs)
        if self._point is None or (deepstack is None and not has_hooks(self._point)):
            return output
        # A copy: hooks may write into what they get.
        added = torch.zeros_like(output) if deepstack is None else deepstack[self._index].to(output, copy=True)
        term: Tensor = self._point(added)
        return output + term
