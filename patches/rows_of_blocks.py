"""Base of the two `attention_rows` patches: one patch per block of a model, all for the same rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.patches.errors import LensplugError
from lensplug.patches.hook_points import has_hooks, seen
from lensplug.patches.masks import as_mask
from lensplug.patches.modules import attention_of
from lensplug.patches.patch import Patch, PatchOfParts
from lensplug.patches.pattern_blocks import PatternBlocks, refuse_edits
from lensplug.patches.row_indices import as_rows, last_of, refuse_other_rows

EachBlock = Callable[[int, int, Float[Tensor, "batch head row key"]], None]
"""Called with the layer, the first query position of a block of rows, and the pattern of the block."""

EachGradient = Callable[[int, int, Float[Tensor, "batch head row key"], Float[Tensor, "batch head row key"]], None]
"""The same, with the gradient with respect to the pattern."""


class ChosenRows:
    """The rows, for all blocks of a model: what is the same in each of them is worked out once."""

    def __init__(self, rows: Int[Tensor, "batch row"]) -> None:
        """From `as_rows`."""
        self.rows, self.last = rows, last_of(rows)
        self._unseen: dict[Any, Bool[Tensor, "example head row key"] | None] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.rows.shape[1])

    def scores(self, blocks: PatternBlocks) -> Float[Tensor, "batch head row key"]:
        """The scores of the rows, nothing masked."""
        index = self.rows.to(blocks.q.device)[:, None, :, None]
        return blocks.scores(blocks.q.gather(2, index.expand(-1, blocks.q.shape[1], -1, blocks.q.shape[3])))

    def masked(
        self, scores: Float[Tensor, "batch head row key"], blocks: PatternBlocks
    ) -> Float[Tensor, "batch head row key"]:
        """The scores, minus infinity where a row does not look."""
        unseen = self._unseen_of(blocks)
        return scores if unseen is None else scores.masked_fill(unseen, -torch.inf)

    def _unseen_of(self, blocks: PatternBlocks) -> Bool[Tensor, "example head row key"] | None:
        """Where the rows do not look; None: they look everywhere, as the last one does."""
        device = blocks.q.device
        if blocks.mask is not None or blocks.padding is not None or blocks.unseen:
            return ~blocks.seen(self.rows.to(device))
        alike = (blocks.length, blocks.past, blocks.window, blocks.causal, device)
        if alike not in self._unseen:
            unseen = ~blocks.seen(self.rows.to(device))
            self._unseen[alike] = unseen if bool(unseen.any()) else None
        return self._unseen[alike]


class RowsOfABlock(Patch):
    """The attention of one block."""

    def __init__(
        self,
        attn: Any,
        chosen: ChosenRows,
        hidden: Bool[Tensor, "batch key"] | None,
        each_block: Callable[[int, Tensor], None] | None,
        each_gradient: Callable[[int, Tensor, Tensor], None] | None,
    ) -> None:
        """As `RowsOfBlocks`, of its layer."""
        super().__init__(attn)
        self._chosen, self._hidden, self._each_block, self._each_gradient = chosen, hidden, each_block, each_gradient

    @property
    def shows_patterns(self) -> bool:
        """Whether rows of patterns are asked for, or are other than the model's own."""
        requests = (self._hidden, self._each_block, self._each_gradient)
        return bool(self._chosen) or any(request is not None for request in requests)

    def attended(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None) -> Tensor:
        """What the attention makes of rotated queries and keys, and values, as its own forward has them there."""
        raise NotImplementedError

    def _shown(self, scores: Float[Tensor, "batch head row key"]) -> Float[Tensor, "batch head row key"]:
        """The pattern of these scores, when the hooks of both have seen them.

        Raises:
            LensplugError: If a hook edits them.
        """
        scores_point, pattern_point = self.target.hook_attn_scores, self.target.hook_pattern
        expected = pattern = scores.softmax(dim=-1).nan_to_num(0.0)
        # Hooks may write into what they get.
        if has_hooks(scores_point):
            pattern = scores_point(scores.clone()).softmax(dim=-1).nan_to_num(0.0)
        elif has_hooks(pattern_point):
            pattern = expected.clone()
        pattern = seen(pattern_point, pattern)
        if pattern is not expected:
            refuse_edits(pattern, expected)
        return pattern

    def _refuse_other(self, queries: int, keys: int, batch: int) -> None:
        """Raise unless the rows are of what the model runs on.

        A pass behind a key-value cache has the last positions only; rows and hidden ones are counted from the left of
        all. Without rows, as `generate` runs, a cache is used.
        """
        if keys != queries and (self._chosen or self._hidden is not None):
            raise LensplugError("attention rows are not known with a key-value cache: run the prompt in one piece.")
        refuse_other_rows(self._chosen.rows, self._chosen.last, batch, queries)

    def _visible(self, keys: int) -> Bool[Tensor, "batch key"] | None:
        """Where a query may look; None: everywhere."""
        if self._hidden is not None and self._hidden.shape[1] != keys:
            raise LensplugError(f"hidden has the shape {list(self._hidden.shape)}, the model runs on {keys} positions.")
        return None if self._hidden is None else ~self._hidden

    def _options(self) -> dict[str, Any]:
        return {
            "rows": self._chosen.rows,
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
        chosen, each = ChosenRows(rows), (each_block, each_gradient)

        def shown(layer: int) -> list[Any]:
            return [callback and partial(callback, layer) for callback in each]

        blocks = [
            self._of_block(attn, chosen, hidden, *shown(i))
            for i, block in enumerate(model.blocks)
            if (attn := attention_of(block)) is not None
        ]
        super().__init__(model, blocks)

    def _of_block(self, attn: Any, *given: Any) -> RowsOfABlock:
        """The patch of one block's attention; refuses what SDPA does not know."""
        raise NotImplementedError
