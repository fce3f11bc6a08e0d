"""The gap: the direction of a logit leaves out the final norm's weight unless that is folded away.

`tokens_to_residual_directions` returns columns of W_U, and `ActivationCache.logit_attrs` multiplies them
with a stack that was divided by the final norm's scale only. Without folding the norm's weight is
missing, and attributions do not sum to the logit (-0.126 against -0.753 in a small model). Folding makes a
copy of the weights; this patch multiplies the weight into the direction instead. On a model whose norm is
folded it changes nothing.

What stays outside, as with folding: the bias of a LayerNorm and of the unembedding.

For a HookedTransformer or a TransformerBridge. Checked against transformer-lens 3.9.0, and 4.3.0 for the bridge.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lensplug.patches.patch import Patch


class LogitDirections(Patch):
    """While applied, `logit_attrs` sums to the logit also where the final norm is not folded.

    with LogitDirections(model):
        attributions = cache.logit_attrs(cache.decompose_resid(), tokens=answer)
    """

    relies_on = ("tokens_to_residual_directions",)

    def __init__(self, model: Any) -> None:
        """Keep `model`; nothing is changed before `apply`."""
        super().__init__(model)

    def _changes(self) -> dict[str, Any]:
        self._unembedding_columns = self.target.tokens_to_residual_directions
        return {"tokens_to_residual_directions": self.tokens_to_residual_directions}

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """The direction in the normalised residual stream whose dot product is the logit."""
        directions: Tensor = self._unembedding_columns(tokens)
        if self.target.cfg.normalization_type in ("LN", "RMS"):
            offset = getattr(self.target.cfg, "rmsnorm_uses_offset", False)  # Gemma's norms multiply by 1 + weight
            directions = directions * (self.target.ln_final.w + int(offset))
        return directions
