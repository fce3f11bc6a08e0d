"""On what a new lens stands: tests of lensplug's own, a proof made now, or neither."""

from __future__ import annotations

from lensplug import engines
from lensplug.errors import LensplugError
from lensplug.hf.lead import Lead
from lensplug.lens import MultimodalLens
from lensplug.proof.prove import prove as made_proof
from lensplug.proof.report import Proof


def standing_of(lens: MultimodalLens, prove: bool | None, lead: Lead) -> None:
    """Prove a new lens where that is due, and set `lens.proof`.

    Args:
        lens: As it was wrapped.
        prove: As for `lensplug.wrap`.
        lead: What words have to stand behind for its model.

    Raises:
        LensplugError: If a check failed: the first that did.
    """
    is_tested = engines.is_tested(lens.core)
    if not prove and (is_tested or prove is False):
        why = "" if is_tested else "prove=False was given: nothing is known of what this core computes"
        lens.proof = Proof(lens.core.name, lens.engine, "", (), "tested family" if is_tested else "not proved", why=why)
    else:
        lens.proof = made_proof(lens.hf_model, lens.core, lens.model, engine=lens.engine, lens=lens, lead=lead)
    if not is_tested:
        # Results say it (`Provenance.options`): a number of a core that no test covers.
        object.__setattr__(lens.model, "proof", lens.proof.short())
    failure = lens.proof.first_failure
    if failure is not None:
        raise LensplugError(
            f"{type(lens.hf_model).__name__} is not wrapped: its core, {lens.core.model_type}, failed the proof on load"
            f" ({failure}). wrap(..., prove=False) gives the lens all the same, to look into."
        )
