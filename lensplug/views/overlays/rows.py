"""The input of overlays: one value per position, or several named rows of such values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput

ROUNDING = 2**-8
"""Tolerance with which attention rows in half precision sum to 1."""
Rows = Float[Tensor, " pos"] | Mapping[str, Float[Tensor, " pos"]] | Result


def rows_at(
    values: Rows, inputs: MultimodalInput, positions: Int[Tensor, " token"] | None = None, *, example: int = 0
) -> dict[str, Float[Tensor, " token"]]:
    """The rows by name ("" for a single one), at the chosen positions, in fp32 on the CPU.

    Args:
        values: One row, several named rows, or a result that has rows.
        inputs: The inputs that were analysed.
        positions: Which positions; all by default.
        example: Which example of a result.

    Raises:
        LensplugError: If a row is not one value for each position of the inputs.
    """
    if isinstance(values, Result):
        values = values.by_position(example)
    rows = {}
    for name, row in (values if isinstance(values, Mapping) else {"": values}).items():
        row = torch.as_tensor(row).detach()
        if row.shape != inputs.tokens.shape[1:]:
            raise LensplugError(
                f"values have the shape {list(row.shape)}, expected one for each of {inputs.tokens.shape[1]} positions."
            )
        row = row.float().cpu()
        rows[name] = row if positions is None else row[positions.cpu()]
    return rows


def are_shares(values: Rows, inputs: MultimodalInput, example: int = 0) -> bool:
    """Whether values are shares of attention, which can be summed and averaged.

    For a result, its type says so; plain rows are shares if no value is negative and no row sums to more than 1.
    """
    if isinstance(values, Result) and not values.shares:
        return False
    rows = torch.stack(list(rows_at(values, inputs, example=example).values())).nan_to_num(0)
    return bool((rows >= 0).all()) and float(rows.sum(dim=1).max()) <= 1 + ROUNDING
