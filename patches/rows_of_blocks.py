"""Base of the two `attention_rows` patches: one patch per block of a model, all for the same rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.patches.errors import LensplugError
from lensplug.patches.masks import as_mask
from lensplug.patches.patch import Patch, PatchOfParts
from lensplug.patches.row_indices import as_rows, last_of

EachBlock = Callable[[int, int, Float[Tensor, "batch head row key"]], None]
"""Called with the layer, the first query position of a block of rows, and the pattern of the block."""

EachGradient = Callable[[int, int, Float[Tensor, "batch head row key"], Float[Tensor, "batch head row key"]], None]
"""The same, with the gradient with respect to the pattern."""


class RowsOfABlock(Patch):
    """The attention of one block."""

    def __init__(
        self,
        attn: Any,
        rows: Int[Tensor, "batch row"],
        hidden: Bool[Tensor, "batch key"] | None,
        each_block: Callable[[int, Tensor], None] | None,
        each_gradient: Callable[[int, Tensor, Tensor], None] | None,
    ) -> None:
        """As `RowsOfBlocks`, of its layer."""
        super().__init__(attn)
        self._rows, self._hidden, self._each_block, self._each_gradient = rows, hidden, each_block, each_gradient
        self._last = last_of(rows)

    @property
    def shows_patterns(self) -> bool:
        """Whether rows of patterns are asked for, or are other than the model's own."""
        requests = (self._hidden, self._each_block, self._each_gradient)
        return bool(self._rows.shape[1]) or any(request is not None for request in requests)

    def attended(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None) -> Tensor:
        """What the attention makes of rotated queries and keys, and values, as its own forward has them there."""
        raise NotImplementedError

    def _visible(self, keys: int) -> Bool[Tensor, "batch key"] | None:
        """Where a query may look; None: everywhere."""
        if self._hidden is not None and self._hidden.shape[1] != keys:
            raise LensplugError(f"hidden has the shape {list(self._hidden.shape)}, the model runs on {keys} positions.")
        return None if self._hidden is None else ~self._hidden

    def _options(self) -> dict[str, Any]:
        return {
            "rows": self._rows,
            "hidden positions": self._hidden,
            "each_block": self._each_block,
            "each_gradient": self._each_gradient,
        }


class RowsOfBlocks(PatchOfParts):
    """Fast attention in every block of a model; scores and patterns of chosen rows."""

    def __init__(
        self,
        model: Any,
        rows: Any,
        *,
        hidden: Any = None,
        each_block: EachBlock | None = None,
        each_gradient: EachGradient | None = None,
    ) -> None:
        """Prepare the patch.

        Args:
            model: The model.
            rows: For each example the query positions, from the left, whose scores and patterns are wanted:
                `[batch row]`; there may be none (`[batch 0]`).
            hidden: Positions that no query attends to, in any block (attention knockout); others do not move. True and
                False, or 1 and 0.
            each_block: Shown the whole pattern of every layer, a block of rows at a time, the last rows first, in fp32:
                for sums and means over it, of which no more than one block is ever there. A block has the keys up to
                its last row. Costs about half of what eager attention does.
            each_gradient: Shown, while gradients are taken, the pattern of every layer and the gradient with respect
                to it, in the same blocks: the last layer first. The backward pass recomputes both.

        Raises:
            LensplugError: If the model's attention has something that SDPA does not know, or rows are no whole numbers
                `[batch, row]`, or count from the end.
        """
        rows = as_rows(rows)
        hidden = None if hidden is None else as_mask(hidden, (len(rows), None), "hidden")
        each = (each_block, each_gradient)
        super().__init__(
            model,
            [
                self._of_block(block.attn, rows, hidden, *(callback and partial(callback, layer) for callback in each))
                for layer, block in enumerate(model.blocks)
            ],
        )

    def _of_block(self, attn: Any, *given: Any) -> RowsOfABlock:
        """The patch of one block's attention; refuses what SDPA does not know."""
        raise NotImplementedError


def refuse_behind_a_cache(queries: int, keys: int, rows: Int[Tensor, "batch row"], hidden: Tensor | None) -> None:
    """Raise if rows or hidden positions were asked for, and a key-value cache holds a part of the positions.

    Both are counted from the left of all positions; a pass behind a cache has the last ones only. Without rows, as
    `generate` runs, a cache is used.
    """
    if keys != queries and (rows.shape[1] or hidden is not None):
        raise LensplugError("attention rows are not known with a key-value cache: run the prompt in one piece.")
