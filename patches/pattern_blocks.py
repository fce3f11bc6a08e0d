"""Any rows of one block's attention pattern, in fp32, from its queries and keys: never more than a block of rows.

Not a patch, but used by `attention_rows`: the scores of some rows, the whole pattern a block of rows at a
time, and a backward pass that shows pattern and gradient of each block of rows before it forgets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from lensplug.patches.errors import LensplugError
from lensplug.patches.unseen_keys import UnseenKeys, hidden_from

BLOCK_BYTES = 2**26
"""Approximate memory of a block of rows, in fp32, with its intermediates."""
FEW_ROWS = 8
"""A row in so many keys is one of a few: a mask for every head of them is small."""

Show = Callable[[int, Float[Tensor, "batch head row key"], Float[Tensor, "batch head row key"]], None]


@dataclass(frozen=True)
class PatternBlocks:
    """The queries and keys of one block's attention, and what each query sees."""

    q: Float[Tensor, "batch head pos d_head"]
    k: Float[Tensor, "batch kv_head key d_head"]
    scale: float
    """What scores are divided by."""
    window: int | None = None
    """How many positions a query sees, its own included; None: all before it."""
    causal: bool = False
    padding: Bool[Tensor, "batch key"] | None = None
    """False where a key is padding, or hidden."""
    mask: Bool[Tensor, "example 1 pos key"] | None = None
    """In place of all that, what each query sees; with `causal`, that no key is later than its query."""
    unseen: tuple[UnseenKeys, ...] = ()
    """Of what is seen, what some heads do not see."""
    cap: float | None = None
    """Scores approach plus and minus this, by tanh (Gemma 2)."""

    @property
    def length(self) -> int:
        """The number of keys."""
        return self.k.shape[2]

    @property
    def past(self) -> int:
        """Keys from before the first query, out of a key-value cache."""
        return self.length - self.q.shape[2]

    def scores(
        self, q: Float[Tensor, "batch head row d_head"], keys: int | None = None
    ) -> Float[Tensor, "batch head row key"]:
        """Scores of some queries with the first `keys` keys; in fp32, nothing masked.

        Query heads of a group share their keys: one product for each group, and no copy of the keys.
        """
        k = self.k[:, :, :keys].float()
        scores = ungrouped(grouped(q.float(), k) @ k.transpose(2, 3), q.shape[1]).div_(self.scale)
        return scores if self.cap is None else capped(scores, self.cap)

    def seen(self, rows: Int[Tensor, "rows_of row"], keys: int | None = None) -> Bool[Tensor, "example head row key"]:
        """What these queries see of the first `keys` keys: causal, in the window, no padding, not knocked out."""
        is_visible = self._allowed(rows, keys)
        if not self.unseen:
            return is_visible
        return is_visible & ~hidden_from(self.unseen, rows + self.past, is_visible.shape[-1])

    def _allowed(self, rows: Int[Tensor, "rows_of row"], keys: int | None) -> Bool[Tensor, "example 1 row key"]:
        """What they see where nothing is knocked out."""
        if self.mask is not None:
            mask = self.mask[..., :keys].expand(len(rows), -1, -1, -1) if len(self.mask) == 1 else self.mask[..., :keys]
            query_index = rows.expand(len(mask), -1)[:, None, :, None]
            return mask.gather(2, query_index.expand(-1, -1, -1, mask.shape[3]))
        key = torch.arange(self.length if keys is None else keys, device=rows.device)
        query_index = rows[:, :, None] + self.past
        is_visible = key <= query_index if self.causal else torch.ones_like(key <= query_index)
        if self.causal and self.window is not None:
            is_visible = is_visible & (key > query_index - self.window)
        if self.padding is not None:
            is_visible = is_visible & self.padding[:, None, :keys]
        return is_visible[:, None]

    def __iter__(self) -> Iterator[tuple[int, Float[Tensor, "batch head row key"]]]:
        """The whole pattern: the first row of each block, and the block, the last rows first.

        Of a causal pattern a block has the keys up to its last row; the others are not seen.
        """
        size = self._rows_at_once()
        for stop in range(self.q.shape[2], 0, -size):
            start = max(0, stop - size)
            keys = stop + self.past if self.causal else self.length
            scores = self.scores(self.q[:, :, start:stop], keys)
            rows = torch.arange(start, stop, device=scores.device)[None]
            scores.masked_fill_(~self.seen(rows, keys), -torch.inf)
            yield start, scores.softmax(dim=-1).nan_to_num_(0.0)

    def _rows_at_once(self) -> int:
        batch, heads = self.q.shape[:2]
        return max(1, BLOCK_BYTES // (batch * heads * self.length * 4 * 3))

    def attend(self, v: Float[Tensor, "batch kv_head key d_value"]) -> Float[Tensor, "batch head pos d_value"]:
        """The output of SDPA."""
        if self.cap is not None:
            return self._attend_by_blocks(v)
        if self.unseen:
            return self._attend_with_unseen(v)
        windowed = self.window is not None and self.window < self.length
        everything = self.padding is None and self.mask is None and not windowed
        if self.q.shape[2] == 1 and self.past:
            return self._attend_once(v, everything=everything)
        if everything and not (self.causal and self.past):
            # Key heads are shared by the query heads of a group without a copy.
            grouped_heads = self.q.shape[1] != v.shape[1]
            return F.scaled_dot_product_attention(
                self.q, self.k, v, is_causal=self.causal, scale=1 / self.scale, enable_gqa=grouped_heads
            )
        if everything and 2 * self.past <= self.length:
            # As if there were queries before: a causal kernel leaves half of the scores out, with a mask none.
            all_queries = F.pad(self.q, (0, 0, self.past, 0))
            return replace(self, q=all_queries).attend(v)[:, :, self.past :]
        # With a mask, kernels of some devices do not know shared key heads, and fall back to one that makes all scores.
        k, v = (
            projection.repeat_interleave(self.q.shape[1] // projection.shape[1], dim=1) for projection in (self.k, v)
        )
        everyone = torch.arange(self.q.shape[2], device=v.device)[None]
        mask = self.seen(everyone) if self.mask is None else self.mask
        sees = mask.any(dim=-1, keepdim=True)  # padding sees nothing, and then gets nothing
        return F.scaled_dot_product_attention(self.q, k, v, attn_mask=mask | ~sees, scale=1 / self.scale) * sees

    def _attend_by_blocks(
        self, v: Float[Tensor, "batch kv_head key d_value"]
    ) -> Float[Tensor, "batch head pos d_value"]:
        """From the pattern itself, a block of rows at a time: SDPA knows no soft cap."""
        heads, queries = self.q.shape[1:3]
        size = self._rows_at_once()
        parts = [v.new_zeros(len(v), heads, 0, v.shape[3])]
        for start in range(0, queries, size):
            rows = torch.arange(start, min(start + size, queries), device=v.device)
            mask = self.seen(rows[None])
            mask = grouped(mask.expand(-1, heads, -1, -1), self.k)
            parts.append(ungrouped(self._attention(grouped(self.q[:, :, rows], self.k), v, mask), heads))
        return torch.cat(parts, dim=2)

    def _attention(
        self,
        q: Float[Tensor, "batch kv_head rows d_head"],
        v: Float[Tensor, "batch kv_head key d_value"],
        mask: Bool[Tensor, "example kv_head rows key"],
    ) -> Float[Tensor, "batch kv_head rows d_value"]:
        """The output of grouped queries that see what a mask says; zero where they see nothing."""
        sees = mask.any(dim=-1, keepdim=True)
        mask = mask | ~sees
        if self.cap is None:
            return F.scaled_dot_product_attention(q, self.k, v, attn_mask=mask, scale=1 / self.scale) * sees
        scores = capped(q.float() @ self.k.float().transpose(2, 3) / self.scale, self.cap)
        pattern = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        return (pattern.to(v.dtype) @ v) * sees

    def _attend_with_unseen(
        self, v: Float[Tensor, "batch kv_head key d_value"]
    ) -> Float[Tensor, "batch head pos d_value"]:
        """Queries that see all they may go without a mask, as ever; those of which keys are hidden, with one."""
        queries = self.q.shape[2]
        each = [knockout.any_of(self.past, queries) for knockout in self.unseen]
        rows = each[0] if len(each) == 1 else torch.cat(each).unique()  # type: ignore[no-untyped-call]
        if 2 * len(rows) > queries:
            return self._attend_rows(torch.arange(queries, device=v.device), v)
        z = replace(self, unseen=()).attend(v)
        return z if not len(rows) else z.index_copy(2, rows, self._attend_rows(rows, v))

    def _attend_rows(
        self, rows: Int[Tensor, " row"], v: Float[Tensor, "batch kv_head key d_value"]
    ) -> Float[Tensor, "batch head row d_value"]:
        """The output at some queries, with a mask of what they see."""
        k, q, heads = self.k, self.q[:, :, rows], self.q.shape[1]
        mask = self.seen(rows[None])
        sees = mask.any(dim=-1, keepdim=True)
        mask = mask | ~sees
        if FEW_ROWS * len(rows) > self.length:
            k, v = (projection.repeat_interleave(heads // projection.shape[1], dim=1) for projection in (k, v))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1 / self.scale) * sees
        # Of a few rows, query heads that share keys are rows too, and no key is copied.
        mask = grouped(mask.expand(-1, heads, -1, -1), k)
        z = F.scaled_dot_product_attention(grouped(q, k), k, v, attn_mask=mask, scale=1 / self.scale)
        return ungrouped(z, heads) * sees

    def attend_at(
        self, rows: Int[Tensor, "batch row"], v: Float[Tensor, "batch kv_head key d_value"]
    ) -> Float[Tensor, "batch head row d_value"]:
        """The output where the queries are those of a few rows alone, counted from the first position of all."""
        rows, heads = rows.to(v.device), self.q.shape[1]
        mask = self._allowed(rows - self.past, None) if self.mask is None else self.mask
        if self.unseen:
            mask = mask & ~hidden_from(self.unseen, rows, self.length)
        mask = grouped(mask.expand(-1, heads, -1, -1), self.k)
        return ungrouped(self._attention(grouped(self.q, self.k), v, mask), heads)

    def _attend_once(
        self, v: Float[Tensor, "batch kv_head key d_value"], *, everything: bool
    ) -> Float[Tensor, "batch head 1 d_value"]:
        """Attention of one query over a key-value cache: query heads that share keys are rows; no key is copied."""
        k, mask = self.k, self.mask
        if mask is None and not everything:  # the last query: its window is the last keys
            window = self.length if self.window is None else self.window
            k, v = k[:, :, -window:], v[:, :, -window:]
            mask = None if self.padding is None else self.padding[:, None, None, -window:]
        rows = grouped(self.q, k)
        return ungrouped(
            F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=1 / self.scale), self.q.shape[1]
        )

    def attend_and_show(
        self, v: Float[Tensor, "batch kv_head key d_value"], show: Show
    ) -> Float[Tensor, "batch head pos d_value"]:
        """The output of SDPA; the backward pass calls `show` with each block of rows.

        `show` gets the first row, the pattern and the gradient with respect to the pattern, as a free number.
        """
        output: Tensor = _ShownBackward.apply(self.q, self.k, v, self, show)
        return output


class _ShownBackward(torch.autograd.Function):
    """SDPA whose backward pass recomputes the pattern, a block of rows at a time, in fp32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: PatternBlocks, show: Show) -> Tensor:
        ctx.save_for_backward(q, k, v)
        # Queries and keys are kept by save_for_backward alone, which checkpointing can replace by recomputing.
        options = (blocks.scale, blocks.window, blocks.causal, blocks.padding, blocks.mask, blocks.unseen, blocks.cap)
        ctx.rest, ctx.show = options, show
        return blocks.attend(v)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        blocks = PatternBlocks(q, k, *ctx.rest)
        heads = q.shape[1]
        grad_q, grad_k, grad_v = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (q, k, v))
        for start, pattern in blocks:
            stop, keys = start + pattern.shape[2], pattern.shape[3]
            k_seen, v_seen = k[:, :, :keys].float(), v[:, :, :keys].float()
            of_z = grouped(grad_output[:, :, start:stop].float(), v_seen)
            gradient = ungrouped(of_z @ v_seen.transpose(2, 3), heads)
            ctx.show(start, pattern, gradient)
            of_scores = gradient - (gradient * pattern).sum(dim=-1, keepdim=True)
            of_scores = of_scores.mul_(pattern).div_(blocks.scale)
            if blocks.cap is not None:  # the slope of tanh
                of_scores *= 1 - (blocks.scores(q[:, :, start:stop], keys) / blocks.cap).square()
            of_scores = grouped(of_scores, k_seen)
            grad_q[:, :, start:stop] = ungrouped(of_scores @ k_seen, heads)
            grad_k[:, :, :keys] += of_scores.transpose(2, 3) @ grouped(q[:, :, start:stop].float(), k_seen)
            grad_v[:, :, :keys] += grouped(pattern, v_seen).transpose(2, 3) @ of_z
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def refuse_edits(pattern: Float[Tensor, "batch head row key"], expected: Float[Tensor, "batch head row key"]) -> None:
    """Raise if the pattern of some rows, after all hooks, is not that of their scores before any.

    Raises:
        LensplugError: Then a hook edits what the output does not come from.
    """
    if not torch.equal(expected.to(pattern.dtype), pattern):
        raise LensplugError(
            "a hook edits attention scores or patterns, and where only some rows of them are made, the output does not"
            " come from them: the edit would change nothing. Runs that make all rows: lens.run_with_hooks(inputs,"
            " fwd_hooks=[...]), lens.model(inputs), run_with_cache and run_with_gradients without query_positions and"
            " keep, generate."
        )


def capped(scores: Float[Tensor, "*axes"], cap: float) -> Float[Tensor, "*axes"]:
    """Scores with a soft cap."""
    return cap * (scores / cap).tanh()


def grouped(
    by_head: Shaped[Tensor, "example head row x"], shared: Float[Tensor, "batch kv_head key d_head"]
) -> Shaped[Tensor, "example kv_head rows x"]:
    """The rows of all heads that share a key head, under each other."""
    return by_head.reshape(len(by_head), shared.shape[1], -1, by_head.shape[3])


def ungrouped(rows: Float[Tensor, "batch kv_head rows x"], heads: int) -> Float[Tensor, "batch head row x"]:
    """The inverse of `grouped`."""
    return rows.reshape(len(rows), heads, -1, rows.shape[3])
