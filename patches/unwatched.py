"""Whether any hook reads the inside of a block, or any patch changes how it computes.

Not a patch, but shared by the two patches for unwatched blocks. A hook point without hooks is a call of an empty
module: about twenty per block, whose overhead a GPU cannot hide when a step has one position.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lensplug.patches.later_positions import Cut, LaterPositions
from lensplug.patches.patch import Patch, PatchOfParts
from lensplug.patches.rows_of_blocks import RowsOfABlock

THE_SAME = (
    "hooked_transformer.core", "hooked_transformer.attention_rows", "hooked_transformer.mlp_in_place",
    "hooked_transformer.unseen_keys", "bridge.attention_rows", "bridge.deepstack", "bridge.key_value_cache",
    "bridge.mlp_in_place", "bridge.padding", "bridge.resid_mid", "both.checkpointed_blocks", "both.mlp_by_positions",
    "unwatched",
)  # fmt: skip
"""Patches under which a block computes the same numbers, in another way."""


class Unwatched(PatchOfParts):
    """While applied, blocks that no hook sees within compute the same numbers, without their hook points."""

    def __init__(self, model: Any, parts: Sequence[UnwatchedBlock], later: LaterPositions | None = None) -> None:
        """Keep the blocks that are known; nothing is changed before `apply`.

        Args:
            model: The model.
            parts: A patch of each block that is known.
            later: Which positions of each pass are computed, where all blocks are known.
        """
        super().__init__(model, parts)
        self.knows_all = len(parts) == len(model.blocks)
        if later is not None and self.knows_all:
            for layer, part in enumerate(parts):
                part.later, part.layer, part.all_blocks = later, layer, list(parts)


class UnwatchedBlock(Patch):
    """One block. Whether a hook sees it is looked up in every pass: hooks come and go.

    Hooks at its edges, on the residual stream that enters and leaves it, are called; and, while rows of patterns are
    made, so are those on scores and patterns. No other is.
    """

    later: LaterPositions | None = None
    """Which positions are computed; None: all."""
    layer: int
    all_blocks: list[UnwatchedBlock]
    replaced_for_rows: ClassVar[str]
    """The method of the block's attention that a patch which makes rows of patterns replaces."""

    def __init__(self, block: Any, modules: Sequence[nn.Module], edges: Sequence[Any]) -> None:
        """Keep the block; nothing is changed before `apply`.

        Args:
            block: The block.
            modules: It and all modules in it.
            edges: Its hook points that `_short` calls.
        """
        super().__init__(block)
        patterns = (block.attn.hook_attn_scores, block.attn.hook_pattern)
        called, self.edges = {*edges, *patterns}, edges
        self._hooks = _hooks_of([module for module in modules if module not in called])
        self._pattern_hooks = _hooks_of(patterns)

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward where a hook sees it or a gradient is taken, else the short one."""
        if self.later is not None and self.later.begin == self.layer:
            self.later.decide(self.all_blocks)
        if len(args) != 1 or torch.is_grad_enabled() or self._watched():
            return self._forward(*args, **kwargs)
        return self._short(*args, **kwargs)

    @property
    def is_watched(self) -> bool:
        """Whether the block runs with all its hook points."""
        return torch.is_grad_enabled() or self._watched()

    @property
    def shows_rows(self) -> bool:
        """Whether rows of its pattern are made."""
        return self._rows() is not None

    def _cut(self, residual: Tensor) -> Cut | None:
        """What is computed of this pass; None: all."""
        return None if self.later is None else self.later.cut(self.layer, len(self.all_blocks), residual)

    def _watched(self) -> bool:
        return any(self._hooks) or (any(self._pattern_hooks) and self._rows() is None)

    def _rows(self) -> RowsOfABlock | None:
        """The patch that makes rows of patterns, where one is in force and asked for them."""
        patch = getattr(getattr(self.target.attn, self.replaced_for_rows), "__self__", None)
        return patch if isinstance(patch, RowsOfABlock) and patch.shows_patterns else None

    def _short(self, residual: Tensor, **kwargs: Any) -> Any:
        """The output of the block."""
        raise NotImplementedError


def _hooks_of(modules: Sequence[Any]) -> list[Any]:
    """Where these modules keep hooks that fire without gradients: with them no block is short."""
    return [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]


def as_made(module: Any, kinds: Sequence[type]) -> bool:
    """Whether a module has one of these classes, and no method that was replaced by a different computation."""
    kind: Any = type(module)
    if kind not in kinds:
        return False
    attributes = vars(module)
    replaced = [attributes[name] for name in _names_of(kind).intersection(attributes)]
    return all(_is_known(method) for method in replaced if callable(method))


@lru_cache(maxsize=64)
def _names_of(kind: Any) -> frozenset[str]:
    """What a class has, methods among it."""
    return frozenset(dir(kind))


def _is_known(method: Any) -> bool:
    """Whether a method is that of a patch that computes the same as what it replaces."""
    return str(getattr(method, "__module__", "")).removeprefix("lensplug.patches.") in THE_SAME


def projected(x: Tensor, linear: Any) -> Tensor:
    """The output of a plain linear module, without calling the module."""
    return F.linear(x, linear.weight, linear.bias)
