"""What is kept of attention patterns that are too large to keep.

`head x pos x pos` numbers in each layer are gigabytes for an image of thousands of tokens. A reduction is shown every
layer's pattern while the model runs, a block of rows at a time, and keeps a head's share of it or less. They are
chosen by name, or made with options:

    _, cache = lens.run_with_cache(inputs, needs=[...], keep=["rollout", "modality_mass"])
    _, cache = lens.run_with_cache(inputs, needs=[...], keep=[reductions.HeadMean(layers=[5])])

Analyses read what was kept where the pattern is not there. The numbers are those of the whole pattern to rounding:
the functions that reduce a block are the ones that analyses apply to a pattern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.reductions.cam import Cam as Cam
from lensplug.reductions.gradient_rollout_rows import GradientRolloutRows as GradientRolloutRows
from lensplug.reductions.head_mean import HeadMean as HeadMean
from lensplug.reductions.modality_mass import ModalityMass as ModalityMass
from lensplug.reductions.received import Received as Received
from lensplug.reductions.rollout_product import RolloutProduct as RolloutProduct
from lensplug.validation.arguments import described


@runtime_checkable
class Kept(Protocol):
    """A reduction at work in one run."""

    @property
    def named(self) -> Mapping[str, Tensor]:
        """What is in the cache afterwards, by name."""

    @property
    def noted(self) -> Mapping[str, Any]:
        """Attributes of the cache that say how it was made."""

    def __call__(self, layer: int, start: int, pattern: Tensor) -> None:
        """One block of rows, `[batch head row key]` in fp32 from query `start` on.

        Layers come first to last, in each the last rows first; a block has the keys up to its last row.
        """


@runtime_checkable
class Reduction(Protocol):
    """What is to be kept: it may be used for many runs."""

    def begin(self, inputs: MultimodalInput, layers: int, heads: int) -> Kept:
        """An empty accumulator for one run on these inputs, for a model with these numbers of layers and heads."""

    def numbers(self, inputs: MultimodalInput, layers: int, heads: int) -> int:
        """How many numbers (fp32) will be kept."""


@runtime_checkable
class GradientReduction(Protocol):
    """What is kept of patterns and their gradients, for `lens.run_with_gradients`."""

    def begin(self, inputs: MultimodalInput, layers: int, target_rows: Int[Tensor, "batch row"] | None) -> Any:
        """Called with layer, first row, pattern and gradient of each block, the last layer first; has `named`.

        The model has so many layers. `target_rows` are the positions at which the target is read; None where it is a
        function.
        """


BY_NAME: dict[str, Any] = {
    "head_mean": HeadMean,
    "modality_mass": ModalityMass,
    "received": Received,
    "rollout": RolloutProduct,
}
GRADIENTS_BY_NAME: dict[str, Any] = {
    "cam": Cam,
    "cam_negative": partial(Cam, "negative"),
    "gradient_rollout": GradientRolloutRows,
}
"""With their default options."""

ReductionName = Literal["head_mean", "modality_mass", "received", "rollout"]
GradientReductionName = Literal["cam", "cam_negative", "gradient_rollout"]
Keep = ReductionName | Reduction | Sequence[ReductionName | Reduction] | None
KeepGradients = GradientReductionName | GradientReduction | Sequence[GradientReductionName | GradientReduction] | None


def chosen(keep: Any, by_name: Mapping[str, Any] = BY_NAME) -> list[Any]:
    """The reductions that are meant, of a name, a reduction, or several.

    Raises:
        LensplugError: If a name is unknown.
    """
    several = keep if isinstance(keep, Sequence) and not isinstance(keep, str) else [] if keep is None else [keep]
    reductions = []
    for reduction in several:
        if reduction not in by_name if isinstance(reduction, str) else not hasattr(reduction, "begin"):
            names = ", ".join(map(repr, by_name))
            raise LensplugError(
                f"keep has {described(reduction)}, expected {names}, or a reduction of lensplug.reductions."
            )
        reductions.append(by_name[reduction]() if isinstance(reduction, str) else reduction)
    return reductions
