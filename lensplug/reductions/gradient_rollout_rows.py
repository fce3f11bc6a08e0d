"""Gradient rollout of a few rows, multiplied up while the backward pass comes down: vectors in place of matrices.

A row of R is e (I + cam_last) ... (I + cam_first), with e the row's own position. The backward pass visits layers last
to first, which is the order of this product: it shows each layer's pattern and gradient a block of rows at a time, and
a block's cam is needed only for what the vector holds at these rows. No layer's cam is ever whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.indices import Positions, resolve_positions
from lensplug.reductions import names as hook_names
from lensplug.reductions.cam import Contributions, weighted


@dataclass(frozen=True)
class GradientRolloutRows:
    """Keep `[batch row key]` in all, in fp32: R - I of equation 6 of Chefer et al. 2021, at these rows.

    `analysis.gradient_rollout` reads it for the same contributions and `exclude_first`, without `normalize`, which
    needs every row of R in every layer.
    """

    rows: Positions | None = None
    """Output positions, negative ones from the last that is not padding; None: those at which the target is read."""
    contributions: Contributions = "positive"
    """What of gradient x attention counts: what raises the target, what lowers it, or one minus the other."""
    exclude_first: bool = True
    """Leave out attention to the first position that is not padding."""

    def __post_init__(self) -> None:
        """Refuse other contributions."""
        if self.contributions not in get_args(Contributions):
            raise LensplugError(
                f"contributions is {self.contributions!r}, expected 'positive', 'negative' or 'signed'."
            )

    def begin(self, inputs: MultimodalInput, layers: int, target_rows: Int[Tensor, "batch row"] | None) -> _Rows:
        """Nothing yet, for one run.

        Raises:
            LensplugError: If the target is a function, which tells no rows, and none are given; or one is no position.
        """
        mask = inputs.attention_mask
        if self.rows is not None:
            return _Rows(self, layers, resolve_positions(self.rows, mask, name="rows"), mask)
        if target_rows is None:
            raise LensplugError(
                "keep='gradient_rollout' keeps the rows at which the target is read, and a function does not say which:"
                " keep=lensplug.reductions.GradientRolloutRows(rows=[-1])."
            )
        return _Rows(self, layers, target_rows.to(mask.device), mask)


def refuse_twice(chosen: Sequence[Any]) -> None:
    """Raise if two of the reductions would be kept under one name.

    Raises:
        LensplugError: Then.
    """
    options = [(one.contributions, one.exclude_first) for one in chosen if isinstance(one, GradientRolloutRows)]
    for contributions, exclude_first in options:
        if options.count((contributions, exclude_first)) > 1:
            raise LensplugError(
                f"keep has GradientRolloutRows twice with contributions={contributions!r} and"
                f" exclude_first={exclude_first}: give one with the rows of both."
            )


class _Rows:
    def __init__(
        self, options: GradientRolloutRows, layers: int, rows: Int[Tensor, "batch row"], mask: Int[Tensor, "batch pos"]
    ) -> None:
        self._missing = set(range(layers))
        self._name = hook_names.gradient_rollout(options.contributions, options.exclude_first)
        self._contributions, self._rows, self._real = options.contributions, rows, mask.bool()
        is_first = self._real & (self._real.long().cumsum(dim=1) == 1)
        self._gives = self._real & ~is_first if options.exclude_first else self._real
        self._identity = torch.nn.functional.one_hot(rows, mask.shape[1]).float()
        self._relevance = torch.zeros_like(self._identity)
        self._layer: int | None = None
        self._brought: Float[Tensor, "batch row key"] | None = None

    def __call__(
        self,
        layer: int,
        start: int,
        pattern: Float[Tensor, "batch head query key"],
        gradient: Float[Tensor, "batch head query key"],
    ) -> None:
        if layer != self._layer:
            self._end_layer()
            self._missing.discard(layer)
            # What a block reads is as it was before the layer: the blocks come in any order.
            self._held = ((self._identity + self._relevance) * self._real[:, None]).to(pattern.device)
            self._layer, self._brought = layer, torch.zeros_like(self._held)
        queries, keys = pattern.shape[2:]
        cam = weighted(pattern, gradient, self._contributions)
        assert self._brought is not None
        self._brought[:, :, :keys] += self._held[:, :, start : start + queries] @ cam

    def _end_layer(self) -> None:
        if self._brought is not None:
            self._relevance = self._relevance + self._brought.to(self._relevance.device) * self._gives[:, None]
            self._brought = None

    @property
    def named(self) -> dict[str, Float[Tensor, "batch row key"] | Int[Tensor, "batch row"]]:
        """The relevance, and of which rows it is.

        Raises:
            LensplugError: If the backward pass did not come by every layer.
        """
        if self._missing:
            raise LensplugError(
                f"keep='gradient_rollout': the gradient does not come through the attention of layers"
                f" {sorted(self._missing)}, in whose place or behind which a hook or an edit puts something else: run"
                " without keep, which takes the gradients of the patterns themselves."
            )
        self._end_layer()
        return {self._name: self._relevance, hook_names.rows_of(self._name): self._rows}
