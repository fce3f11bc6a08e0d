"""Scopes that can be entered again: what a `with` block of lensplug's is given.

Not a patch, but in place of `contextlib.contextmanager`, whose scopes work once: kept under a name and entered a second
time, one raises "args" as an AttributeError. A scope made here begins anew each time that it is entered; inside itself
it is refused.

    @scope
    def hooks(self, fwd_hooks):
        ...

Yield:
    steered = lens.hooks([("resid_post", steer)])
    with steered:
        ...
    with steered:                                  # the same again
        ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import _GeneratorContextManager
from functools import wraps
from inspect import GEN_CLOSED, GEN_CREATED, getgeneratorstate
from typing import ParamSpec, TypeVar

from lensplug.patches.errors import LensplugError

P = ParamSpec("P")
T = TypeVar("T")


class Scope(_GeneratorContextManager[T]):
    """Of one call of a function that yields once; how it ends, also by an error, is left to `contextlib`."""

    def __enter__(self) -> T:
        """Begin, also when it was left before.

        Raises:
            LensplugError: If it is entered and not left yet.
        """
        state = getgeneratorstate(self.gen)
        if state not in (GEN_CREATED, GEN_CLOSED):
            raise LensplugError(
                f"this scope of {self.func.__name__}(...) is entered already: leave it first, or make a new one by"
                f" another call of {self.func.__name__}(...)."
            )
        if state == GEN_CLOSED:
            self.gen = self.func(*self.args, **self.kwds)
        return next(self.gen)


def scope(function: Callable[P, Iterator[T]]) -> Callable[P, Scope[T]]:
    """Make a function that yields once one that returns scopes."""

    @wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> Scope[T]:
        return Scope(function, args, kwargs)  # type: ignore[arg-type]

    return made
