"""What every patch is: an edit of one instance that saves what was there and puts that back."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar

from lensplug.patches.errors import LensplugError, changed_inside
from torch import nn

_ABSENT = object()


class Patch:
    """A reversible edit of one object.

    A subclass says what it changes in `_changes`. `apply` makes the changes, `remove` puts the old
    values back; `with patch:` does both, also when the body raises (the exception passes through).
    Applying twice, or removing what is not applied, changes nothing.
    """

    relies_on: ClassVar[tuple[str, ...]] = ()
    """What the target must have inside: where it has been renamed, a patch would fail late, or silently do nothing."""

    def __init__(self, target: Any) -> None:
        """Keep `target`; nothing is changed before `apply`.

        Raises:
            LensplugError: If the target lacks what the patch relies on.
        """
        for name in self.relies_on:
            if not hasattr(target, name):
                raise changed_inside(f"{type(target).__name__} has no {name}, which {type(self).__qualname__} needs")
        self.target = target
        self._undo: list[tuple[str, Any, Any]] = []

    @property
    def applied(self) -> bool:
        """Whether the changes are in force."""
        return bool(self._undo)

    def _changes(self) -> dict[str, Any]:
        """The attributes that the patch sets on the target, by name."""
        raise NotImplementedError

    def _settle(self) -> None:
        """Called after the attributes of the target changed, in either direction."""

    def apply(self) -> Patch:
        """Make the changes; returns the patch itself."""
        if not self.applied:
            changes = self._changes()  # may raise; nothing is changed yet
            try:
                for name, value in changes.items():
                    old = _own(self.target, name)
                    _put(self.target, name, value)
                    self._undo.append((name, old, value))
                self._settle()
            except BaseException:
                self._restore()  # all or nothing
                raise
        return self

    def remove(self) -> None:
        """Put back what was there before.

        Raises:
            LensplugError: If something else was set on top of this patch since; nothing is changed then.
        """
        for name, _, value in self._undo:
            if _own(self.target, name) is not value:
                raise LensplugError(
                    f"{type(self).__name__} cannot be removed: {type(self.target).__name__}.{name} was changed after it"
                    " was applied. Remove the later patch first."
                )
        if self.applied:
            self._restore()

    def _restore(self) -> None:
        while self._undo:
            name, old, _ = self._undo.pop()
            if old is _ABSENT:
                delattr(self.target, name)
            else:
                _put(self.target, name, old)
        self._settle()

    def __enter__(self) -> Patch:
        """Apply."""
        return self.apply()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove, whatever happened inside."""
        self.remove()


class PatchOfParts(Patch):
    """One patch that is made of several, one for each part of a model: in force in all of them or in none."""

    def __init__(self, target: Any, parts: Sequence[Patch]) -> None:
        """Keep the parts; nothing is changed before `apply`."""
        super().__init__(target)
        self._parts = parts

    @property
    def applied(self) -> bool:
        """Whether the changes are in force."""
        return any(part.applied for part in self._parts)

    def apply(self) -> Patch:
        """Make the changes, in every part or in none."""
        try:
            for part in self._parts:
                part.apply()
        except BaseException:
            self.remove()
            raise
        return self

    def remove(self) -> None:
        """Put back what was there before."""
        for part in reversed(self._parts):
            part.remove()


def _put(target: Any, name: str, value: Any) -> None:
    """Give the instance itself a value.

    A bridge's component hands what its wrapped module also has (`forward`) on to that: not what a patch of it means.
    """
    is_module = isinstance(value, nn.Module) or name in target.__dict__.get("_modules", {})
    (setattr if is_module else object.__setattr__)(target, name, value)


def _own(target: Any, name: str) -> Any:
    """The value that the instance itself holds under `name` (a submodule counts), or `_ABSENT`."""
    submodules = target.__dict__.get("_modules", {})
    return submodules[name] if name in submodules else target.__dict__.get(name, _ABSENT)
