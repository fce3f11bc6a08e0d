"""Logits at chosen positions only, for a HookedTransformer or a TransformerBridge.

The gap: TransformerLens unembeds every position. For a prompt with an image that is 3,000 rows of a vocabulary of
152,000, 1.8 GB in fp32, while an analysis of the answer reads one row. Under this patch the unembedding gets the
chosen positions; the output, `unembed.hook_in` and `hook_out` are `[batch row ...]`. A loss needs every position: ask
for logits.

Checked against TransformerLens 3.9, and 4.3 for the bridge.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from lensplug.patches.patch import Patch
from lensplug.patches.row_indices import as_rows, last_of, refuse_other_rows


class LogitRows(Patch):
    """While applied, a model computes logits at chosen positions only.

    with LogitRows(model, rows):
        logits = model(tokens)                     # [batch row d_vocab]
    """

    def __init__(self, model: Any, rows: Any) -> None:
        """Keep the unembedding of `model`; nothing is changed before `apply`.

        Args:
            model: A HookedTransformer or a TransformerBridge.
            rows: For each example the positions, from the left, whose logits are wanted: `[batch row]`.

        Raises:
            LensplugError: If rows are no whole numbers `[batch, row]`, or count from the end.
        """
        super().__init__(model.unembed)
        self._rows = as_rows(rows)
        self._last = last_of(self._rows)

    def _options(self) -> dict[str, Any]:
        return {"rows": self._rows}

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward}

    def forward(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch row d_vocab"]:
        """The logits of the rows."""
        refuse_other_rows(self._rows, self._last, *residual.shape[:2])
        rows = self._rows.to(residual.device)[:, :, None].expand(-1, -1, residual.shape[-1])
        logits: Tensor = self._forward(residual.gather(1, rows))
        return logits
