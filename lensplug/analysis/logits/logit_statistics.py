"""Statistics of many rows of logits, in about a quarter of the time that computing the logits takes.

Two cores compute a row of 152,000 logits in a millisecond (d_model 896, fp32). Each pass over it adds 1 to 3 % of that
if the row is in the CPU's cache, twice as much if it comes from memory, and `topk` adds 20 %. So a row is never sorted,
and all passes over a few rows are made before the next few.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64
"""Block size: `largest` first takes only the maximum of each block of columns."""

CACHE_BYTES = 2**22
"""Bytes of logits that fit into a CPU's cache together with as much scratch space."""


def statistics(
    logits: Float[Tensor, "position entry d_vocab"],
    p_last: Float[Tensor, "position d_vocab"],
    target: Int[Tensor, " position"],
    *,
    top_k: int,
    few: int,
) -> dict[str, Tensor]:
    """What the logit lens keeps of each distribution, as `[position entry ...]`: nats, in fp32.

    Args:
        logits: Logits of some layers; fp32 ones are overwritten.
        p_last: The last layer's probabilities.
        target: The tokens that `rank` and `log_probability` are of.
        top_k: How many of the most probable tokens to keep.
        few: Rows to work on at a time; each takes up to two rows more of memory.

    `cross` is the cross-entropy of the last layer and this one; KL is what it exceeds the last layer's entropy by.
    """
    top, tokens = largest(logits, top_k)
    positions, entries, _ = logits.shape
    of_target = logits.gather(-1, target[:, None, None].expand(-1, entries, 1))
    highest = top[..., :1]
    better, total, times_log, times_log_last = logits.new_empty(4, positions, entries, dtype=torch.float32)
    for tile in tiles(positions, entries, few):
        rows = logits[tile].float()
        spare = torch.empty_like(rows)
        # As 0.0 and 1.0: bools take longer to write and to add up.
        torch.sum(torch.gt(rows, of_target[tile], out=spare), dim=-1, out=better[tile])
        below = rows.sub_(highest[tile])  # 0 for the most probable token
        odds = torch.exp(below, out=spare)  # against the most probable token
        torch.sum(odds, dim=-1, out=total[tile])
        _add_up(odds.mul_(below), out=times_log[tile])
        _add_up(below.mul_(p_last[tile[0], None]), out=times_log_last[tile])
    log_total = total.log()
    return {
        "top_tokens": tokens,
        "top_probabilities": (top.float() - highest).exp() / total[..., None],
        "rank": 1 + better.long(),
        "log_probability": (of_target.float() - highest)[..., 0] - log_total,
        "entropy": log_total - times_log / total,
        "cross": log_total - times_log_last,
    }


def largest(rows: Float[Tensor, "*row column"], k: int) -> tuple[Float[Tensor, "*row k"], Int[Tensor, "*row k"]]:
    """The k largest numbers of each row and their columns, as `topk` gives them, in a fifth of its time.

    They are in the k blocks of columns with the largest maxima: only these, and the columns after the last whole block,
    go through `topk`.
    """
    width = rows.shape[-1]
    blocks = width // BLOCK
    if blocks <= k:
        top = rows.topk(k)
        return top.values, top.indices
    maxima = rows[..., : blocks * BLOCK].view(*rows.shape[:-1], blocks, BLOCK).amax(dim=-1)
    first = maxima.topk(k, sorted=False).indices[..., None] * BLOCK
    columns = (first + torch.arange(BLOCK, device=rows.device)).flatten(-2)
    remainder = torch.arange(blocks * BLOCK, width, device=rows.device).expand(*columns.shape[:-1], -1)
    columns = torch.cat([columns, remainder], dim=-1)
    top = rows.gather(-1, columns).topk(k)
    return top.values, columns.gather(-1, top.indices)


def _add_up(products: Float[Tensor, "*row column"], out: Float[Tensor, "*row"]) -> None:
    """Sums of probability times logarithm, where 0 times -inf is 0."""
    torch.sum(products, dim=-1, out=out)
    if bool(out.isnan().any()):  # a logit of -inf is rare, and nansum takes half as long again
        torch.nansum(products, dim=-1, out=out)


def tiles(rows: int, columns: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Rectangles of at most `size` fields that cover a table: whole rows of it where they are short enough."""
    return ((some, these) for some in chunks(rows, max(1, size // columns)) for these in chunks(columns, size))


def chunks(length: int, size: int) -> Iterator[slice]:
    """A range in pieces of `size`; the last may be shorter."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
