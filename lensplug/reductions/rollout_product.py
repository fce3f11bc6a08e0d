"""The rollout of all rows, multiplied up while the model runs: one `pos x pos` matrix in place of one for each layer.

A row of the new product needs the rows before it of the old one (attention is causal), and the last rows come first:
the product is written over the old one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.reductions import names as hook_names
from lensplug.reductions.mixing import Mixing, beside_first, keeps


@dataclass(frozen=True)
class RolloutProduct:
    """Keep `[batch query key]`, the product of all layers' mixtures, last to first, in fp32.

    And two numbers for each row of each layer, from which `analysis.attention_rollout`, which reads it for the same
    options, makes the rollout of uniform attention.
    """

    mixing: Mixing = Mixing()

    def __post_init__(self) -> None:
        """Refuse what needs more than patterns."""
        if self.mixing.head_fusion == "value_weighted" or self.mixing.residual == "measured":
            raise LensplugError(
                "values and norms are not at hand while attention runs: for head_fusion='value_weighted' or"
                " residual='measured' run without keep and give the whole cache to analysis.attention_rollout."
            )

    def begin(self, inputs: MultimodalInput, layers: int, heads: int) -> _Product:
        """The identity, for one run."""
        self.mixing.check_heads(layers, heads)
        return _Product(self.mixing, inputs.attention_mask, layers)

    def numbers(self, inputs: MultimodalInput, layers: int, heads: int) -> int:
        """How many numbers will be kept."""
        batch, length = inputs.tokens.shape
        return batch * length**2 + batch * layers * length * 2


class _Product:
    def __init__(self, mixing: Mixing, attention_mask: Int[Tensor, "batch pos"], layers: int) -> None:
        self.mixing, self.noted = mixing, {"rollout_mixing": mixing}
        self._first = attention_mask.argmax(dim=1)
        at = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        self._left_out = at == self._first[:, None] if mixing.exclude_first else None
        self._shape, self._layers = attention_mask.shape, layers
        self.named: dict[str, Float[Tensor, "batch ..."]] = {}

    def __call__(self, layer: int, start: int, pattern: Float[Tensor, "batch head row key"]) -> None:
        if hook_names.ROLLOUT not in self.named:
            batch, length = self._shape
            self.named[hook_names.ROLLOUT] = torch.eye(length, dtype=pattern.dtype, device=pattern.device).repeat(
                batch, 1, 1
            )
            self.named[hook_names.ROLLOUT_ROWS] = pattern.new_zeros(batch, self._layers, length, 2)
        product = self.named[hook_names.ROLLOUT]
        rows, keys = pattern.shape[2:]
        if keys > start + rows:
            raise LensplugError(
                "attention looks ahead in this model (within an image), and this rollout is for attention that does"
                " not: keep='head_mean', and give the cache to analysis.attention_rollout."
            )
        fused = self.mixing.fused(pattern, self.mixing.heads_of(layer))
        left_out = None if self._left_out is None else self._left_out[:, :keys]
        attention = self.mixing.attention(fused, left_out)
        assert not isinstance(self.mixing.residual, str)
        residual_share = keeps(attention, self.mixing.residual)[:, :, None]
        off_first = beside_first(attention, self._first)[:, :, None]
        self.named[hook_names.ROLLOUT_ROWS][:, layer, start : start + rows] = torch.cat(
            [residual_share, off_first], dim=-1
        )
        # Nothing before this row block has been written yet; columns behind its last row are zero.
        product_rows = attention @ product[:, :keys, :keys]
        product_rows.mul_(1 - residual_share).add_(residual_share * product[:, start : start + rows, :keys])
        product[:, start : start + rows, :keys] = product_rows
