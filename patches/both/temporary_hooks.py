"""The gap: TransformerLens removes temporary hooks by a pass over every hook point of a model.

`HookedTransformer.hooks` and `run_with_hooks` look at all points when they end (twenty for each block) to remove a few
hooks; a TransformerBridge rebuilds its map of names when they begin. For a small model, or a short prompt, that is a
tenth of a run. Here the points that got a hook lose it again, and no other is touched: hooks that a user has left on
the model stay, and so do those that are in force around or within.

Checked against transformer-lens 3.9.0 and 4.3.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def temporary_hooks(
    model: Any, hooks: Iterable[tuple[str, Callable[..., Any]]], *, first: bool = False
) -> Iterator[None]:
    """A scope with hooks on a HookedTransformer or a TransformerBridge; they are removed even after an interrupt.

    with temporary_hooks(model, [("blocks.0.hook_resid_post", look)]):
        model(tokens)

    Args:
        model: The model.
        hooks: Names in its `hook_dict`, and functions as TransformerLens calls them.
        first: Call them, in their order, before the hooks that are there: these see what they have changed.
    """
    points = model.hook_dict
    each = [(points[name], function) for name, function in hooks]
    remaining = [point for point, _ in each]
    level: Any = object()  # TransformerLens numbers its hooks by how deep they are nested: ours are of no number

    def remove() -> None:
        while remaining:
            remaining[-1].remove_hooks("fwd", level=level)
            remaining.pop()

    try:
        try:
            for point, function in reversed(each) if first else each:
                point.add_hook(function, level=level, prepend=first)
            yield
        finally:
            remove()
    finally:
        remove()  # an interrupt may have come in the midst of the first
