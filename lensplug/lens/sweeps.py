"""Runs of a lens from which a few logits are read: one, or many of one prompt that differ by their edits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug import engines
from lensplug.errors import LensplugError
from lensplug.hf.run_lock import in_turn, refuse_training, turn
from lensplug.inputs.edited_inputs import Variant
from lensplug.inputs.multimodal_input import MultimodalInput, refuse_other_inputs
from lensplug.interventions import in_force as interventions
from lensplug.lens.wrapped_model import WrappedModel
from lensplug.patches.scope import scope
from lensplug.positions.by_modality import Where, mask_at, named
from lensplug.running.edited_runs import EditedRuns, edited_runs
from lensplug.validation.arguments import checked
from lensplug.validation.masks import Mask


class Sweeps(WrappedModel):
    """The methods of a lens for runs by the dozen: only the logits that are read, at the speed of SDPA."""

    @in_turn
    @checked
    def logits_at(
        self,
        inputs: MultimodalInput | Variant | Float[Tensor, "batch pos d_model"],
        rows: Int[Tensor, "batch row"],
        *,
        attention_mask: Mask | None = None,
        hidden: Where | None = None,
    ) -> Float[Tensor, "batch row d_vocab"]:
        """Logits at a few positions, at the speed of SDPA, optionally with attention knockout of some positions.

        Args:
            inputs: From `prepare` or `encode`, an edited copy of them (`without`, `lensplug.inputs.edited_inputs`), or
                merged embeddings `[batch pos d_model]`.
            rows: For each example the positions, from the left.
            attention_mask: For embeddings with padding, `[batch pos]`; inputs have their own.
            hidden: Positions that no query attends to, in any layer (attention knockout): a modality of the inputs
                ("image"), several, or a mask `[batch pos]` of True and False, or 1 and 0. Other positions do not move.

        Raises:
            LensplugError: If a hook edits scores or patterns, which would not change these logits.
        """
        if named(hidden) is not None:
            lens_inputs = inputs if isinstance(inputs, MultimodalInput) else None
            hidden = mask_at(
                cast(Where, hidden), lens_inputs, () if lens_inputs is None else lens_inputs.shape, "hidden"
            )
        with torch.no_grad(), self.logits_only(rows, hidden=cast("Mask | None", hidden)):
            logits: Tensor = self.model(inputs, attention_mask=attention_mask)
        return logits

    @checked
    @scope
    def logits_only(
        self,
        rows: Int[Tensor, "batch row"],
        *,
        hidden: Mask | None = None,
        whole_patterns: bool = False,
    ) -> Iterator[None]:
        """A scope in which `lens.model` computes logits at a few positions only, at the speed of SDPA.

        For many runs with hooks from which only these logits are read (`analysis.activation_patching`).

        Args:
            rows: For each example the positions, from the left.
            hidden: As for `logits_at`.
            whole_patterns: Compute scores and patterns of all rows, at full cost, for hooks that edit them. Otherwise
                only those of `rows` are computed, so that an edit, which would have no effect, is detected and refused.
        """
        with ExitStack() as stack:
            stack.enter_context(turn(self.core.decoder.config))
            refuse_training(self.hf_model, "lens.hf_model")
            refuse_training(self.model, "lens.model")
            if not whole_patterns:
                stack.enter_context(engines.attention_rows(self.engine, self.model, rows, hidden=hidden))
            elif hidden is not None:
                raise LensplugError("positions cannot be hidden where whole patterns are made.")
            stack.enter_context(engines.logit_rows(self.model, rows))
            yield

    @checked
    @scope
    def edited_runs(
        self,
        inputs: MultimodalInput,
        rows: Int[Tensor, "batch row"] | None = None,
        *,
        whole_patterns: bool = False,
        batch: int | None = None,
        gradients: bool = False,
    ) -> Iterator[EditedRuns]:
        """A scope of many runs of one prompt, each with an edit of its own: batched, and begun where they are edited.

            rows = torch.tensor([[inputs.shape[1] - 1]])
            with lens.edited_runs(inputs, rows) as runs:
                halved = runs.logits(1, [("blocks.3.hook_resid_pre", lambda stream, hook: stream / 2)], from_layer=3)

        Many knockouts: `runs.under_each(variants, read)`, at the cost of the positions and layers that they reach.

        Blocks below `from_layer` are not run again, and hooks of yours in them do not fire again. Under edits that are
        in force when the scope begins (`lens.intervene`), runs are whole, and one at a time.

        Args:
            inputs: From `prepare` or `encode`.
            rows: For each example the positions, from the left, whose logits are made; None: all, with whole patterns.
            whole_patterns: As for `logits_only`.
            batch: How many runs are made side by side (`runs.batch`); None: as many as fit into half of the free
                memory, and no more than make it faster.
            gradients: For runs of which gradients are taken.

        Raises:
            LensplugError: If batch is less than 1.
        """
        refuse_other_inputs(inputs)
        with turn(self.core.decoder.config):
            refuse_training(self.hf_model, "lens.hf_model")
            refuse_training(self.model, "lens.model")
            with edited_runs(
                self.model,
                self.engine,
                inputs,
                rows,
                whole_patterns=whole_patterns,
                batch=batch,
                whole_runs=bool(interventions.edits_on(self.model)),
                gradients=gradients,
            ) as runs:
                yield runs
