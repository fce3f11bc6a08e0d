"""Scopes and runs of a lens with hooks of the user's and with edits of `lensplug.interventions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lensplug.errors import LensplugError
from lensplug.hf.run_lock import in_turn, turn
from lensplug.inputs.multimodal_input import MultimodalInput, refuse_other_inputs
from lensplug.interventions import in_force as interventions
from lensplug.interventions.edit import Edit
from lensplug.interventions.in_force import Acted
from lensplug.lens.wrapped_model import WrappedModel
from lensplug.patches.both.placeholders import placeholders_as_words
from lensplug.patches.both.temporary_hooks import temporary_hooks
from lensplug.patches.patch import in_force
from lensplug.patches.scope import scope
from lensplug.running.caching import HookName, names_taken
from lensplug.running.hook_checks import hook_names_of
from lensplug.validation.arguments import checked, described
from lensplug.validation.finite import refuse_overflow

FwdHooks = Sequence[tuple[HookName | Callable[[str], bool], Callable[..., Any]]]
"""As TransformerLens takes them: names, or functions of the name, and functions of activation and hook."""


class HooksAndEdits(WrappedModel):
    """The methods of a lens that change what its runs compute, and put it back."""

    @in_turn
    @checked
    def run_with_hooks(
        self,
        inputs: MultimodalInput,
        *,
        fwd_hooks: FwdHooks = (),
        **kwargs: Any,
    ) -> Any:
        """TransformerLens's `run_with_hooks`: hooks act during this call only, also if one raises.

        Names may be in TransformerLens's short form: `[("resid_post", function)]` in every layer,
        `[(("resid_post", 3), function)]` in one.

        Raises:
            LensplugError: If a name is no hook of the model.
        """
        refuse_other_inputs(inputs)
        hooks = self._by_whole_name(fwd_hooks)
        with (
            interventions.bound(self.model, inputs),
            refuse_overflow(self.model, inputs.attention_mask, each_score=True),
        ):
            return self.model.run_with_hooks(inputs, fwd_hooks=hooks, **kwargs)

    def _by_whole_name(self, fwd_hooks: FwdHooks) -> list[tuple[Any, Callable[..., Any]]]:
        """Hooks by their whole names: of a short form one for each layer."""
        return [(name, function) for names, function in fwd_hooks for name in hook_names_of(self.model, names)]

    @checked
    @scope
    def hooks(self, fwd_hooks: FwdHooks) -> Iterator[None]:
        """A scope with hooks of your own in every run of the lens, also in `generate`; they go also if a run raises.

            with lens.hooks([("resid_post", steer)]):
                lens.generate(inputs).text

        Args:
            fwd_hooks: As for `run_with_hooks`. A hook on scores or patterns makes runs compute all of them; runs
                of a few rows (`logits_at`, `query_positions=`, `keep=`) show it these, and refuse one that edits them.

        Raises:
            LensplugError: If a name is no hook of the model.
        """
        hooks = [
            (name, function)
            for names, function in self._by_whole_name(fwd_hooks)
            for name in (names_taken(self.model, names) if callable(names) else [names])
        ]
        if fwd_hooks and not hooks:
            raise LensplugError("these functions of the name take no hook of this model: see lens.model.hook_dict.")
        with turn(self.core.decoder.config), temporary_hooks(self.model, hooks):
            yield

    @scope
    def intervene(self, *edits: Any) -> Iterator[Acted]:
        """A scope in which every run of the lens is made under edits of `lensplug.interventions`.

            with lens.intervene(Knockout(from_="image", to="last", layers=range(2, 5))):
                lens.generate(inputs).text
            with lens.intervene(Steer(direction, layers=12, scale=0.1), Ablate(heads=[(3, 1)])) as acted:
                _, cache = lens.run_with_cache(inputs)
            acted.to_dataframe()

        They act in the order given, those of an outer scope first, in `run_with_cache`, `run_with_gradients`,
        `run_with_hooks`, `logits_at`, `generate` and `lens.model` itself, before hooks of yours; caches hold what they
        made, and results say so (`result.provenance.options["interventions"]`). After the scope the model is as it was.

        Args:
            *edits: `Knockout`, `Ablate`, `Steer`, `Replace`, `Scale`, `SpliceSAE`.

        Yields:
            What they did in the last run.

        Raises:
            LensplugError: If something is no edit; and, by a run, if a place or component is not there, or an edit did
                not act.
        """
        if wrong := [edit for edit in edits if not isinstance(edit, Edit) or isinstance(edit, type)]:
            raise LensplugError(
                f"{described(wrong[0])} is no edit: give those of lensplug.interventions, Knockout(from_='image')."
            )
        patch = interventions.InForce(self.model, edits)
        with turn(self.core.decoder.config), in_force(patch):
            yield patch.acted

    @scope
    def placeholders_as_words(self) -> Iterator[None]:
        """A scope in which `lens.model` accepts placeholder tokens without media, as if they were text.

            with lens.placeholders_as_words():
                lens.model(inputs.tokens)                      # without the image

        Placeholder tokens mark where an image or sound goes, not its content: outside this scope `lens.model` refuses
        them, also if a tool of TransformerLens passes them.
        """
        with placeholders_as_words():
            yield
