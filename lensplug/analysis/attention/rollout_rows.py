"""The rows of a rollout: which output positions are read, what they are called, and their table.

Shared by the two results that hold a value for each output position and each input position: `Rollout`, shares that are
multiplied from layer to layer, and `GradientRollout`, relevance that is added up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.positions.indices import Positions, resolve_positions

if TYPE_CHECKING:
    import pandas as pd


def chosen_rows(rows: Positions | None, attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch row"]:
    """The rows of a rollout as positions from the left; all for None.

    Raises:
        LensplugError: If there are none, or one is out of range or padding.
    """
    if rows is None:
        return torch.arange(attention_mask.shape[1], device=attention_mask.device).expand(len(attention_mask), -1)
    return resolve_positions(rows, attention_mask, name="rows")


def row_names(rows: Int[Tensor, " row"]) -> list[str]:
    """What the rows of one example are called in `by_position`."""
    return [f"into position {position}" for position in rows.tolist()]


def rows_table(rows: Int[Tensor, "example row"], values: Float[Tensor, "example layer row pos"]) -> pd.DataFrame:
    """Example, output position, input position and value, one line each, in the order of `values`.

    Whole columns at once: a row of Python objects for each of pos x pos values takes minutes.
    """
    import pandas as pd

    examples, layers, count, length = values.shape
    return pd.DataFrame(
        {
            "example": torch.arange(examples).repeat_interleave(layers * count * length).numpy(),
            "row": rows[:, None].expand(-1, layers, -1).flatten().repeat_interleave(length).numpy(),
            "pos": torch.arange(length).repeat(examples * layers * count).numpy(),
            "value": values.flatten().double().numpy(),
        }
    )
