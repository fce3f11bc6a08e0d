"""What a patch of attention calls while the model runs: the same for a HookedTransformer and a bridge."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

EachBlock = Callable[[int, int, Float[Tensor, "batch head row key"]], None]
"""Called with the layer, the first query position of a block of rows, and the pattern of the block."""

EachGradient = Callable[[int, int, Float[Tensor, "batch head row key"], Float[Tensor, "batch head row key"]], None]
"""Likewise, and with the gradient with respect to the pattern."""
