"""The base class of patches: a reversible edit of one instance, which saves and restores what it replaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from lensplug.patches.errors import LensplugError, changed_inside

_KEY = "_patches_in_force"
"""Under this name a target holds what was done to it. On the target, so that a copy of it knows too."""


class _Absent:
    """There was nothing under a name. A class: it stays itself in a copy of what holds it."""


@dataclass(eq=False)
class _Edit:
    """What one patch has done to a target, and every patch of its kind that counts on it."""

    made_by: Patch
    holders: list[Patch]
    undo: list[tuple[str, Any, Any]] = field(default_factory=list)
    """Name, old value, new value."""


PatchT = TypeVar("PatchT", bound="Patch")
PatchOfPartsT = TypeVar("PatchOfPartsT", bound="PatchOfParts")


class Patch:
    """A reversible edit of one object.

    A subclass says what it changes in `_changes`. `apply` makes the changes, `remove` puts the old values back;
    `with patch:` does both, also when the body raises (the exception passes through); where the patch was applied
    before the block, it stays. Applying twice, or removing what is not applied, changes nothing.

    A second patch of the same kind, on a target where one is in force already, changes nothing either: the edit stays
    until the last of them is removed, in whatever order. With other options (`_options`) it is refused, unless its kind
    `nests`; then patches come off in reverse order.
    """

    relies_on: ClassVar[tuple[str, ...]] = ()
    """What the target must have inside: where it has been renamed, a patch would fail late, or silently do nothing."""
    nests: ClassVar[bool] = False
    """Whether a patch of this kind with other options may be applied on top of another."""
    _applied_before: tuple[bool, ...] = ()
    """Of each `with` block that is open, whether the patch was applied before it."""

    def __init__(self, target: Any) -> None:
        """Keep `target`; nothing is changed before `apply`.

        Raises:
            LensplugError: If the target lacks what the patch relies on.
        """
        for name in self.relies_on:
            if not hasattr(target, name):
                raise changed_inside(f"{type(target).__name__} has no {name}, which {type(self).__qualname__} needs")
        self.target = target

    @property
    def applied(self) -> bool:
        """Whether the changes are in force."""
        return self._held() is not None

    def _changes(self) -> dict[str, Any]:
        """The attributes that the patch sets on the target, by name."""
        raise NotImplementedError

    def _options(self) -> Mapping[str, Any]:
        """What two patches of one kind, on one target, may differ in."""
        return {}

    def _settle(self) -> None:
        """Called after the attributes of the target changed, in either direction."""

    def apply(self: PatchT) -> PatchT:
        """Make the changes; returns the patch itself.

        Raises:
            LensplugError: If one of its kind is in force with other options.
        """
        if self.applied:
            return self
        applied_edit = self._same_kind()
        if applied_edit is not None and not self._differs_from(applied_edit):
            applied_edit.holders.append(self)
            return self
        self.refuse_beside_others()
        changes = self._changes()  # may raise; nothing is changed yet
        edit = _Edit(self, [self])
        try:
            self.target.__dict__[_KEY] = (*self._edits(), edit)
            for name, value in changes.items():
                edit.undo.append((name, _own(self.target, name), value))  # first: an interrupt may come at any place
                _put(self.target, name, value)
            self._settle()
        except BaseException:
            self._restore(edit)  # all or nothing
            raise
        return self

    def remove(self) -> None:
        """Put back what was there before, unless another patch of this kind counts on the changes.

        Raises:
            LensplugError: If something else was set on top of this patch since; nothing is changed then.
        """
        self.refuse_covered()
        edit = self._held()
        if edit is not None and len(edit.holders) > 1:
            edit.holders[:] = [holder for holder in edit.holders if holder is not self]
        elif edit is not None:
            self._restore(edit)

    def refuse_covered(self) -> None:
        """Raise if something else relies on what removing would take away."""
        edit = self._held()
        if edit is None or len(edit.holders) > 1:
            return
        for name, _, value in edit.undo:
            if _own(self.target, name) is not value:
                raise LensplugError(
                    f"{type(self).__name__} cannot be removed: {type(self.target).__name__}.{name} was changed after it"
                    " was applied. Remove the later patch first."
                )

    def refuse_beside_others(self, name: str = "") -> None:
        """Raise if a patch of this kind is in force with other options, and it is not one that nests.

        Args:
            name: What it is called in the error; its class by default.
        """
        applied_edit = self._same_kind()
        if self.nests or self.applied or applied_edit is None or not (differing := self._differs_from(applied_edit)):
            return
        raise LensplugError(
            f"{name or type(self).__name__} is in force on this {type(self.target).__name__} already, with other"
            f" {', '.join(differing)}: what it does would be mixed up. Leave its `with` block (or .remove() it) first."
        )

    def _edits(self) -> tuple[_Edit, ...]:
        """All that is in force on the target, in the order in which it was applied."""
        edits: tuple[_Edit, ...] = self.target.__dict__.get(_KEY, ())
        return edits

    def _same_kind(self) -> _Edit | None:
        """The last edit of this kind on the target, by any patch."""
        edits = [edit for edit in self._edits() if type(edit.made_by) is type(self)]
        return edits[-1] if edits else None

    def _held(self) -> _Edit | None:
        """The edit that this patch counts on."""
        return next((edit for edit in self._edits() if any(holder is self for holder in edit.holders)), None)

    def _differs_from(self, edit: _Edit) -> list[str]:
        """The options that are other."""
        their_options = edit.made_by._options()
        return [name for name, value in self._options().items() if not _same(value, their_options.get(name))]

    def _restore(self, edit: _Edit) -> None:
        try:
            self._put_back(edit)
        except BaseException:
            self._put_back(edit)  # an interrupt in the midst of it must not leave the half
            raise

    def _put_back(self, edit: _Edit) -> None:
        """Undo an edit; what is undone already stays so."""
        while edit.undo:
            name, saved, value = edit.undo[-1]
            if _own(self.target, name) is value:
                if saved is _Absent:
                    delattr(self.target, name)
                else:
                    _put(self.target, name, saved)
            edit.undo.pop()
        self._settle()
        if remaining := tuple(remaining_edit for remaining_edit in self._edits() if remaining_edit is not edit):
            self.target.__dict__[_KEY] = remaining
        else:
            self.target.__dict__.pop(_KEY, None)

    def __enter__(self: PatchT) -> PatchT:
        """Apply."""
        was_applied = self.applied
        self.apply()
        self._applied_before = (*self._applied_before, was_applied)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove, whatever happened inside, unless it was applied before the block."""
        *outer, was_applied = self._applied_before
        self._applied_before = tuple(outer)
        if not was_applied:
            self.remove()


class PatchOfAttributes(Patch):
    """Attributes that are known beforehand. A kind of its own is a subclass: two kinds may act on one target."""

    def __init__(self, target: Any, attributes: Mapping[str, Any]) -> None:
        """Prepare the patch.

        Args:
            target: What gets them.
            attributes: Their values by name.
        """
        super().__init__(target)
        self._attributes = attributes

    def _changes(self) -> dict[str, Any]:
        return dict(self._attributes)


class PatchOfParts(Patch):
    """A patch composed of several, one per part of a model: applied to all of them or to none."""

    def __init__(self, target: Any, parts: Sequence[Patch]) -> None:
        """Keep the parts; nothing is changed before `apply`."""
        super().__init__(target)
        self._parts = parts

    @property
    def applied(self) -> bool:
        """Whether the changes are in force."""
        return any(part.applied for part in self._parts)

    def refuse_beside_others(self, name: str = "") -> None:
        """Raise if a part is in force with other options."""
        for part in self._parts:
            part.refuse_beside_others(name or type(self).__name__)

    def apply(self: PatchOfPartsT) -> PatchOfPartsT:
        """Make the changes, in every part or in none."""
        self.refuse_beside_others()
        try:
            for part in self._parts:
                part.apply()
        except BaseException:
            self.remove()
            raise
        return self

    def remove(self) -> None:
        """Put back what was there before, in every part or in none."""
        self.refuse_covered()
        try:
            self._remove_parts()
        except BaseException:
            self._remove_parts()  # an interrupt in the midst of it must not leave the half
            raise

    def refuse_covered(self) -> None:
        """Raise if something else relies on a part."""
        for part in self._parts:
            part.refuse_covered()

    def _remove_parts(self) -> None:
        for part in reversed(self._parts):
            part.remove()


@contextmanager
def in_force(patch: Patch) -> Iterator[Patch]:
    """A scope with a patch applied; it is removed even if an interrupt arrives meanwhile.

    `with patch:` itself is lost where a KeyboardInterrupt arrives before the first line of its end.
    """
    try:
        try:
            yield patch.apply()
        finally:
            patch.remove()
    finally:
        patch.remove()  # nothing to do, unless the first was interrupted


def _put(target: Any, name: str, value: Any) -> None:
    """Give the instance itself a value.

    A bridge's component hands what its wrapped module also has (`forward`) on to that: not what a patch of it means.
    """
    is_module = isinstance(value, nn.Module) or name in target.__dict__.get("_modules", {})
    (setattr if is_module else object.__setattr__)(target, name, value)


def _own(target: Any, name: str) -> Any:
    """The value that the instance itself holds under `name` (a submodule counts), or `_Absent`."""
    submodules = target.__dict__.get("_modules", {})
    return submodules[name] if name in submodules else target.__dict__.get(name, _Absent)


def _same(first: Any, second: Any) -> bool:
    """Whether two options mean the same; modules and functions only if they are the same object."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and torch.equal(first.cpu(), second.cpu())
    return first is second or (isinstance(first, str | int | bool) and type(first) is type(second) and first == second)
