"""Edits in force on a model: bound to each run, and undone after it.

A run binds the edits to its inputs: places become positions, and what each edit does becomes hooks, which are called
before all others, and keys that are not seen. The methods of a lens bind before they hook for themselves, so that what
they cache is what the edits made; a call of `lens.model` itself binds when it begins. An edit of which nothing acted in
a run is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lensplug.errors import LensplugError
from lensplug.interventions.edit import Changes, Edit
from lensplug.interventions.places import RunPositions
from lensplug.patches.both.temporary_hooks import temporary_hooks
from lensplug.patches.patch import Patch
from lensplug.patches.unseen_keys import knocked_out

if TYPE_CHECKING:
    import pandas as pd

IN_WORDS = "interventions"
"""The attribute of a model that says which edits are in force, in words: provenance reads it."""


@dataclass(eq=False)
class Acted:
    """What edits did in the last run under them."""

    runs: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each edit and layer of the last run.

        `relative_change`: the norm of what an edit changed over the norm of what was there, at its positions together;
        while generating, of the prompt's pass. NaN of a knockout, which changes no activation by itself.
        """
        import pandas as pd

        return pd.DataFrame(self.rows, columns=["edit", "layer", "hook", "relative_change"])

    def __repr__(self) -> str:
        """How often, and what."""
        return f"Acted(runs={self.runs}, last: {len(self.rows)} hooks and knockouts; .to_dataframe())"


class InForce(Patch):
    """While applied, every run of a model is made under these edits."""

    nests = True

    def __init__(self, model: Any, edits: Sequence[Edit]) -> None:
        """Keep the edits; nothing is changed before `apply`."""
        super().__init__(model)
        self.edits, self.acted, self._is_bound = tuple(edits), Acted(), False

    def _options(self) -> dict[str, Any]:
        return {"edits": self}

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward, IN_WORDS: InWords(self.target)}

    def remove(self) -> None:
        """Put back what was there before; an outer scope that is left before an inner one ends with it."""
        try:
            self.refuse_covered()
        except LensplugError:
            self.edits = ()
            return
        super().remove()
        for outer in reversed(edits_on(self.target)):
            if outer.edits:
                break
            outer.remove()

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's forward, under the edits."""
        if self._is_bound:
            return self._forward(input, *args, **kwargs)
        with self.bound(RunPositions.of(input, kwargs.get("attention_mask"))):
            return self._forward(input, *args, **kwargs)

    @contextmanager
    def bound(self, positions: RunPositions) -> Iterator[None]:
        """A scope of one run on these positions."""
        made = [(edit, edit.changes(self.target, positions)) for edit in self.edits]
        with ExitStack() as stack:
            for _, changes in made:
                stack.enter_context(knocked_out(self.target, changes.unseen))
            hooks = [(hook.name, hook) for _, changes in made for hook in changes.hooks]
            stack.enter_context(temporary_hooks(self.target, hooks, first=True))
            self._is_bound = True
            stack.callback(self._release)
            yield
        self._note(made)

    def _release(self) -> None:
        self._is_bound = False

    def _note(self, made: Sequence[tuple[Edit, Changes]]) -> None:
        self.acted.runs += 1
        self.acted.rows = [row for edit, changes in made for row in _rows(edit, changes)]
        for edit, changes in made:
            idle = [hook.name for hook in changes.hooks if not hook.fired]
            idle += [f"the attention of layer {layer}" for layer, keys in changes.unseen.items() if not keys.asked]
            if idle:
                raise LensplugError(
                    f"{edit} did not act at {idle[0]}{' and others' if len(idle) > 1 else ''}: this was not computed in"
                    " the run, or not where edits reach it; the numbers of the run are without that part of the edit."
                )


def _rows(edit: Edit, changes: Changes) -> Iterator[dict[str, Any]]:
    for hook in changes.hooks:
        layer = int(hook.name.split(".")[1])
        relative = float("nan") if hook.relative is None else float(hook.relative)
        yield {"edit": str(edit), "layer": layer, "hook": hook.name, "relative_change": relative}
    for layer in changes.unseen:
        name = f"blocks.{layer}.attn.hook_attn_scores"
        yield {"edit": str(edit), "layer": layer, "hook": name, "relative_change": float("nan")}


def edits_on(model: Any) -> list[InForce]:
    """The edits that are in force on a model, the outermost first."""
    return [made for edit in Patch(model)._edits() if isinstance(made := edit.made_by, InForce)]


class InWords:
    """The edits that are in force on a model at present, in words, the outermost first."""

    def __init__(self, model: Any) -> None:
        """Keep the model, whose edits come and go."""
        self._model = model

    def __iter__(self) -> Iterator[str]:
        """One after another."""
        return (str(edit) for patch in edits_on(self._model) for edit in patch.edits)


@contextmanager
def bound(model: Any, run_input: Any, *, generating: bool = False) -> Iterator[None]:
    """A scope in which the edits on a model are bound to one run, or to all passes of an answer."""
    patches = edits_on(model)
    if not patches:
        yield
        return
    positions = RunPositions.of(run_input, generating=generating)
    with ExitStack() as stack:
        for patch in reversed(patches):  # the innermost first: each puts its hooks before those that are there
            stack.enter_context(patch.bound(positions))
        yield
