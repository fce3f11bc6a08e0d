"""One run at a time on one Hugging Face model, and none in training mode.

Idea: a run hooks, patches and switches the modules of one model, and takes that back when it ends. Two threads at once
would read each other's hooks, and take back what the other needs. So threads wait for each other: a re-entrant lock
belongs to the configuration of the decoder, whatever lenses there are on the model; every method of a lens that runs
takes it, and under `Turns` what is called on `lens.model` itself.

What it cannot do: what you leave on a model (`lens.model.add_hook`, `set_attn_implementation`, a patch of your own)
acts in the runs of every thread. And the Hugging Face model itself takes no turns: called directly in one thread while
a lens runs in another, it attends by SDPA, and its parameters require no gradients while a lens takes some. It is not
stopped by a lens, and nothing is left on it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, TypeVar, cast

from lensplug.errors import LensplugError
from lensplug.patches.modules import every_module
from lensplug.patches.patch import Patch
from lensplug.patches.scope import scope

Method = TypeVar("Method", bound=Callable[..., Any])

_LOCKS: dict[int, Any] = {}
"""`id` of a configuration -> its lock. Not on the configuration: locks can be neither copied nor saved."""


def turn(config: Any) -> AbstractContextManager[Any]:
    """The lock of all that runs the model with this configuration of its decoder; re-entrant."""
    lock: AbstractContextManager[Any] | None = _LOCKS.get(id(config))
    if lock is None:
        new_lock = threading.RLock()
        lock = _LOCKS.setdefault(id(config), new_lock)  # in one step: another thread may be as far
        if lock is new_lock:
            weakref.finalize(config, _LOCKS.pop, id(config), None)
    return lock


def in_turn(method: Method) -> Method:
    """A method of a lens that runs its model: it waits for other threads, and refuses training mode."""

    @wraps(method)
    def waits(self: Any, *args: Any, **kwargs: Any) -> Any:
        with turn(self.core.decoder.config):
            refuse_training(self.hf_model, "lens.hf_model")
            refuse_training(self.model, "lens.model")
            return method(self, *args, **kwargs)

    return cast("Method", waits)


def refuse_training(model: Any, name: str) -> None:
    """Raise if a module is in training mode, where dropout makes every run differ.

    Args:
        model: The model.
        name: How the user calls it.

    Raises:
        LensplugError: It names the first such module.
    """
    if not any(part.training for part in every_module(model)):
        return
    from transformer_lens.hook_points import HookPoint  # it takes seconds to import

    training = [path for path, part in model.named_modules() if part.training and not isinstance(part, HookPoint)]
    if training:
        which = f" ({training[0]}, ...)" if training[0] else ""
        raise LensplugError(
            f"{len(training)} modules of {name}{which} are in training mode, where dropout makes every run differ: call"
            f" {name}.eval() first."
        )


class Turns(Patch):
    """While applied, calls of a TransformerLens model wait for other threads that run it."""

    def __init__(self, model: Any, config: Any) -> None:
        """Keep `model`; nothing is changed before `apply`.

        Args:
            model: A HookedTransformer or a TransformerBridge.
            config: The configuration of the decoder that it was made of.
        """
        super().__init__(model)
        self._config = config

    def _options(self) -> dict[str, Any]:
        return {"configuration": self._config}

    def _changes(self) -> dict[str, Any]:
        self._hooks = self.target.hooks
        waiting = {name: _Waiting(getattr(self.target, name), self._config) for name in DOORS}
        return {**waiting, "hooks": self.hooks}

    @scope
    def hooks(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """TransformerLens's `hooks`: other threads wait until the block is left."""
        with turn(self._config), self._hooks(*args, **kwargs) as model:
            yield model


DOORS = ("forward", "run_with_cache", "run_with_hooks", "generate")
"""What runs a model."""


class _Waiting:
    """A method that waits. An object, so that a copied model has its own."""

    def __init__(self, method: Callable[..., Any], config: Any) -> None:
        self._method, self._config = method, config

    @property
    def __self__(self) -> Any:
        """The object that the method belongs to."""
        return getattr(self._method, "__self__", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with turn(self._config):
            return self._method(*args, **kwargs)
