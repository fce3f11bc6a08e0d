"""Hook points without hooks, which need not be called.

Not a patch but what patches call hook points by: a call of a module without hooks takes longer than a small tensor
operation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps its hooks."""


def has_hooks(point: Any) -> bool:
    """Whether a hook point has a hook of any kind."""
    return any(getattr(point, kind) for kind in HOOKS)


def seen(point: Any, value: Tensor) -> Tensor:
    """What becomes of a value at a hook point, which is called only where it has a hook."""
    return point(value) if has_hooks(point) else value
