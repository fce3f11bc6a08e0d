"""Large matrices reduced to block means, so that pages stay small and cells visible."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor


def block_size(positions: int, cells: int) -> int:
    """The smallest block size that maps the positions to at most the given number of cells."""
    return max(1, -(-positions // cells))


def block_means(matrix: Shaped[Tensor, "row column"], size: int) -> Shaped[Tensor, "row_block column_block"]:
    """Means over blocks of `size` x `size`; the last blocks may be smaller."""
    if size == 1:
        return matrix
    rows = torch.stack([part.mean(dim=0) for part in torch.split(matrix, size, dim=0)])
    return torch.stack([part.mean(dim=1) for part in torch.split(rows, size, dim=1)], dim=1)
