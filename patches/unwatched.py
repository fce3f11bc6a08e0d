"""Whether anybody sees what a block computes within, or has changed how.

Not a patch but what the two patches for unwatched blocks share. A hook point that nobody hooks is a call of an empty
module: some twenty of them in each block, whose time a GPU cannot hide where a step has one position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lensplug.patches.patch import Patch, PatchOfParts

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps its hooks."""
THE_SAME = (
    "hooked_transformer.core", "hooked_transformer.attention_rows", "hooked_transformer.mlp_in_place",
    "bridge.attention_rows", "bridge.key_value_cache", "bridge.mlp_in_place", "bridge.padding", "bridge.resid_mid",
    "both.checkpointed_blocks", "unwatched",
)  # fmt: skip
"""Patches under which a block computes the same numbers, in another way."""


class Unwatched(PatchOfParts):
    """While applied, blocks that no hook sees compute the same numbers, without their hook points."""


class UnwatchedBlock(Patch):
    """One block. Whether a hook sees it is looked up in every pass: hooks come and go."""

    def __init__(self, block: Any) -> None:
        """Keep the block; nothing is changed before `apply`."""
        super().__init__(block)
        self._hooks = [getattr(module, kind) for module in block.modules() for kind in HOOKS]

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward where a hook sees it or a gradient is taken, else the short one."""
        if len(args) != 1 or torch.is_grad_enabled() or self._watched():
            return self._forward(*args, **kwargs)
        return self._short(*args, **kwargs)

    def _watched(self) -> bool:
        return any(self._hooks)

    def _short(self, residual: Tensor, **kwargs: Any) -> Any:
        """What the block computes."""
        raise NotImplementedError


def as_made(module: Any, kinds: Sequence[type]) -> bool:
    """Whether a module is of one of these classes, and nobody has replaced its methods by what computes otherwise."""
    if type(module) not in kinds:
        return False
    replaced = [value for name, value in vars(module).items() if hasattr(type(module), name) and callable(value)]
    return all(_is_known(method) for method in replaced)


def _is_known(method: Any) -> bool:
    """Whether a method is that of a patch that computes the same as what it replaces."""
    home = str(getattr(method, "__module__", "")).removeprefix("lensplug.patches.")
    return home in THE_SAME and not getattr(getattr(method, "__self__", None), "shows_patterns", False)


def gated(act: Callable[[Tensor], Tensor], pre: Tensor, linear: Tensor) -> Tensor:
    """`act(pre) * linear`, written into the activation, which belongs to nobody else."""
    post = act(pre)
    return (post.clone() if post is pre else post).mul_(linear)


def projected(x: Tensor, linear: Any) -> Tensor:
    """What a plain linear module makes, without the call of a module."""
    return F.linear(x, linear.weight, linear.bias)
