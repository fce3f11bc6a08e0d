"""Row indices in any form, converted to `[batch row]`, for all patches that compute chosen positions only.

Invalid rows are reported before the model runs, instead of an index error inside it, which on a GPU makes the device
unusable for the process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lensplug.patches.errors import LensplugError

EXPECTED = "expected whole numbers [batch, row], such as torch.tensor([[5]]): positions of each example, from the left"


def as_rows(given: Any) -> Int[Tensor, "batch row"]:
    """The rows as a tensor, where it is.

    Args:
        given: A tensor or an array `[batch, row]` of whole numbers, or lists of them.

    Raises:
        LensplugError: If it is not such an array, or counts from the end.
    """
    rows = _tensor(given)
    if rows.ndim != 2 or rows.dtype == torch.bool or rows.is_floating_point() or rows.is_complex():
        kind = str(rows.dtype).removeprefix("torch.")
        raise LensplugError(f"rows are {kind} of the shape {list(rows.shape)}, {EXPECTED}.")
    if rows.numel() and int(rows.min()) < 0:
        raise LensplugError(
            f"rows hold {int(rows.min())}, and a patch does not know which position is the last that is not padding:"
            " count from the left; attention_mask.sum(dim=1, keepdim=True) - 1 is the last of one padded at the right."
        )
    return rows.long()


def refuse_other_rows(rows: Int[Tensor, "batch row"], last: int, batch: int, positions: int) -> None:
    """Raise unless the rows fit the model's input.

    Args:
        rows: From `as_rows`.
        last: The largest of them, -1 if there are none: read once, since reading it synchronises with the device.
        batch: The number of examples that the model runs on.
        positions: The number of their positions.

    Raises:
        LensplugError: If they are for another number of examples, or after the last position.
    """
    if len(rows) != batch:
        raise LensplugError(f"rows are for {len(rows)} examples, the model runs on {batch}.")
    if last >= positions:
        raise LensplugError(f"rows hold {last}, the model runs on {positions} positions: 0 to {positions - 1}.")


def last_of(rows: Int[Tensor, "batch row"]) -> int:
    """The largest of the rows; -1 if there are none."""
    return int(rows.max()) if rows.numel() else -1


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        if isinstance(value, np.ndarray | list | tuple):
            return torch.tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError):
        pass
    raise LensplugError(f"rows are a {type(value).__name__}, {EXPECTED}.")
