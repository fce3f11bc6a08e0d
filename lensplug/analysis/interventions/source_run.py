"""The run whose activations are put into another prompt: how every kind of patching begins.

The prompts are aligned by their modality maps, the source is run once with what is read of it, and its activations are
given out at the positions of the prompt that they are put into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.interventions.measured_target import MeasuredTarget
from lensplug.analysis.interventions.patched_places import moved
from lensplug.analysis.protocols import Lens
from lensplug.cache.activation_cache import ActivationCache
from lensplug.inputs.aligned_positions import counterparts
from lensplug.inputs.logit_targets import Target
from lensplug.inputs.multimodal_input import MultimodalInput

PATTERN = "hook_pattern"


@dataclass(frozen=True, eq=False)
class SourceRun:
    """What is known of the source, and how targets of both prompts are read."""

    measured: MeasuredTarget
    """Reads the target of the source."""
    of_other: MeasuredTarget
    """Reads the target of the prompt that activations are put into."""
    value: Float[Tensor, " example"]
    """The target of the source."""
    cache: ActivationCache
    aligned: Int[Tensor, "batch pos"]

    def at_places(self, name: str) -> Tensor:
        """An activation at the positions of the other prompt; 0 at its padding."""
        return moved(self.cache[name], self.aligned, is_pattern=name.endswith(PATTERN))


def source_run(
    lens: Lens,
    source: MultimodalInput,
    other: MultimodalInput,
    target: Target,
    position: int,
    names: Sequence[str],
) -> SourceRun:
    """Run the source once.

    Its attention is that of the runs that follow (`lens.edited_runs`): SDPA, or full patterns if the target is a
    function or patterns are read, so that two prompts without an effect differ by rounding only.

    Args:
        lens: The lens.
        source: The prompt whose activations are read.
        other: The prompt that they are put into.
        target: What is measured.
        position: Where a token's logit is read.
        names: Of the hooks that are read.

    Raises:
        LensplugError: If the positions cannot be aligned, or the target is not one token for each example.
    """
    aligned = counterparts(source, other)
    measured, of_other = (MeasuredTarget(lens, inputs, target, position) for inputs in (source, other))
    is_whole = measured.rows is None or any(name.endswith(PATTERN) for name in names)
    query_positions: list[int] | None = None if is_whole else []
    logits, cache = lens.run_with_cache(
        source, names_filter=names, query_positions=query_positions, logit_positions=measured.rows
    )
    assert logits is not None
    return SourceRun(measured, of_other, measured(logits), cache, aligned)
