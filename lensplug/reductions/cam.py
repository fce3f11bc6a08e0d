"""Gradient x attention, the mean over heads of its positive or its negative part: what gradient rollout reads.

Kept while gradients are taken: the backward pass recomputes each block of rows of a pattern and its gradient, shows
both, and forgets them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from jaxtyping import Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.reductions import names as hook_names

Sign = Literal["positive", "negative"]
SIGNS: tuple[Sign, ...] = get_args(Sign)
Contributions = Literal[Sign, "signed"]
"""Attention that raises a number, that lowers it, or one minus the other."""


@dataclass(frozen=True)
class Cam:
    """Keep `[batch query key]` of every layer, in fp32: equation 5 of Chefer et al. 2021, or its counterpart."""

    sign: Sign = "positive"

    def __post_init__(self) -> None:
        """Refuse another sign."""
        if self.sign not in SIGNS:
            raise LensplugError(f"sign is {self.sign!r}, expected {' or '.join(map(repr, SIGNS))}.")

    def begin(self, inputs: MultimodalInput, layers: int, target_rows: Int[Tensor, "batch row"] | None) -> _Cams:
        """Empty, for one run; of every row."""
        return _Cams(self.sign, inputs.tokens.shape[1])


@dataclass
class _Cams:
    sign: Sign
    length: int
    named: dict[str, Float[Tensor, "batch query key"]] = field(default_factory=dict)

    def __call__(
        self,
        layer: int,
        start: int,
        pattern: Float[Tensor, "batch head row key"],
        gradient: Float[Tensor, "batch head row key"],
    ) -> None:
        name = hook_names.cam(layer, self.sign)
        if name not in self.named:
            self.named[name] = pattern.new_zeros(len(pattern), self.length, self.length)
        rows, keys = pattern.shape[2:]
        self.named[name][:, start : start + rows, :keys] = weighted(pattern, gradient, self.sign)


def weighted(
    pattern: Float[Tensor, "batch head row key"], gradient: Float[Tensor, "batch head row key"], sign: Contributions
) -> Float[Tensor, "batch row key"]:
    """The mean over heads of the positive part of gradient x attention, or of the negative one, without its sign.

    Or of all of it, with its sign.
    """
    product = gradient * pattern
    if sign == "signed":
        return product.mean(dim=1)
    return (product.clamp_(min=0) if sign == "positive" else product.clamp_(max=0).neg_()).mean(dim=1)
