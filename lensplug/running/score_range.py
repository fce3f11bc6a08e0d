"""Whether attention scores stay within the range of float16, without computing all of them.

The product of a query and a key is no larger than that of their lengths: where the longest query and key of a head stay
below the range no score leaves it, and nothing else is computed. Elsewhere the scores are made in fp32, some rows at a
time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BLOCK_BYTES = 2**26
LARGEST = torch.finfo(torch.float16).max


class ScoreRange:
    """Counts heads with a score beyond float16, while a model runs with these hooks.

    with model.hooks(fwd_hooks=(scores := ScoreRange(model, at)).hooks):
        model(inputs)
    scores.beyond
    """

    def __init__(self, model: Any, is_real: Bool[Tensor, "batch pos"]) -> None:
        """Take the model and where there is no padding; TransformerLens divides scores after their product."""
        self._at = is_real
        self._q: dict[int, Tensor] = {}
        self._beyond = 0
        self.hooks: list[tuple[str, Callable[..., None]]] = []
        for layer in range(model.cfg.n_layers):
            name = f"blocks.{layer}.attn.hook_rot"
            self.hooks += [(f"{name}_q", partial(self._queries, layer)), (f"{name}_k", partial(self._keys, layer))]

    @property
    def beyond(self) -> int:
        """Heads, of all layers, with a score that float16 does not hold."""
        return self._beyond

    def _queries(self, layer: int, q: Float[Tensor, "batch pos head d_head"], hook: Any) -> None:
        self._q[layer] = q

    def _keys(self, layer: int, k: Float[Tensor, "batch pos kv_head d_head"], hook: Any) -> None:
        q, k = (projections.transpose(1, 2) for projections in (self._q.pop(layer), k))
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        longest = (
            projections.float().norm(dim=-1).masked_fill(~self._at[:, None], 0).amax(dim=(0, 2))
            for projections in (q, k)
        )
        for head in (torch.stack(list(longest)).prod(dim=0) > LARGEST).nonzero()[:, 0].tolist():
            self._beyond += self._leaves(q[:, head].float(), k[:, head].float())

    def _leaves(self, q: Float[Tensor, "batch pos d_head"], k: Float[Tensor, "batch pos d_head"]) -> bool:
        """Whether a query's product with a key that it may see is beyond the range."""
        batch, length = self._at.shape
        size = max(1, BLOCK_BYTES // (4 * batch * length))
        k = k.masked_fill(~self._at[..., None], 0)
        for start in range(0, length, size):
            rows = q[:, start : start + size].masked_fill(~self._at[:, start : start + size, None], 0)
            scores = rows @ k[:, : start + rows.shape[1]].transpose(1, 2)
            if bool((scores.tril(diagonal=start).abs() > LARGEST).any()):
                return True
        return False
