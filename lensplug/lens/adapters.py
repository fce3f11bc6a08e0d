"""Adapters of a lens's model, which stay beside the weights: with and without, in one lens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lensplug.hf.run_lock import turn
from lensplug.lens.wrapped_model import WrappedModel
from lensplug.patches.adapters import ActiveAdapters
from lensplug.patches.patch import in_force
from lensplug.patches.scope import scope
from lensplug.validation.arguments import checked


class Adapters(WrappedModel):
    """The method of a lens that says which adapters act."""

    @checked
    @scope
    def adapter(self, name: str | Sequence[str]) -> Iterator[None]:
        """A scope in which these adapters of PEFT act, and no others; afterwards those that did before.

            _, tuned = lens.run_with_cache(lens.prepare(question, images=[image]))
            with lens.adapter("off"):
                _, base = lens.run_with_cache(lens.prepare(question, images=[image]))

        Both models change: `lens.hf_model` and the wrapped core, which runs its layers. Inputs keep the embeddings that
        they were made with: where an adapter is in the encoder, or in the embeddings, call `prepare` inside the scope.
        Results say which weights made them (`provenance.weights`): without an adapter those of the model below it.

        Args:
            name: The name of an adapter ("default" is what PEFT calls the first), several that act together, or "off".

        Raises:
            LensplugError: If there is none of that name, or one is merged into the weights.
        """
        with turn(self.core.decoder.config), in_force(ActiveAdapters(self.hf_model, name)):
            yield
