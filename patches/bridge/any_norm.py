"""A norm of any family as a bridge's component: computed by TransformerLens's formula where that is what it computes.

The gap: TransformerLens takes the epsilon, the mean and the offset of all norms of a model from one configuration. Here
each norm is asked, with numbers: is it the root mean square, with or without the mean, times the weight or one more
than that? Then `hook_scale` and `hook_normalized` are its own, and edits of them count. Another norm has neither hook.

Checked against transformer-lens 3.9.0 and 4.3.0.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import RMSNormalizationBridge

NAMES_OF_EPSILONS = ("eps", "variance_epsilon", "norm_eps", "epsilon")
ENOUGH = 1e-5
"""How far from the formula a norm may be, in float64, as a fraction."""


class AnyNorm(RMSNormalizationBridge):  # type: ignore[misc]
    """A norm; by the formula where it follows one."""

    property_aliases = {"w": "weight", "b": "bias"}  # noqa: RUF012
    formula: SimpleNamespace | None = None

    def set_original_component(self, original_component: nn.Module) -> None:
        """Wrap a norm, and find its formula."""
        super().set_original_component(original_component)
        formula = formula_of(original_component)
        object.__setattr__(self, "formula", formula)
        self._uses_rms_norm_override = formula is None or not formula.centred
        if formula is None:
            for name in ("hook_scale", "hook_normalized"):
                delattr(self, name)
                self._hook_registry.pop(name, None)
            return
        self.config = formula
        self.use_native_layernorm_autograd = False
        if formula.centred and getattr(original_component, "bias", None) is None:
            object.__setattr__(self, "b", torch.zeros_like(self.weight))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The norm."""
        if self.formula is None or args or kwargs:
            normed: Tensor = self.hook_out(self.original_component(self.hook_in(hidden_states), *args, **kwargs))
            return normed
        output: Tensor = super().forward(hidden_states)
        return output


def formula_of(norm: nn.Module) -> SimpleNamespace | None:
    """Epsilon, whether the mean is taken out, and whether the weight counts from one; None: another formula."""
    weight = getattr(norm, "weight", None)
    eps = next((value for name in NAMES_OF_EPSILONS if isinstance(value := getattr(norm, name, None), float)), None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or eps is None or weight.is_meta:
        return None
    numbers = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0))
    numbers = (numbers + 0.3).to(weight)
    numbers[1::2] *= 1e-3
    with torch.no_grad():
        expected = norm(numbers)
    if not isinstance(expected, Tensor) or expected.shape != numbers.shape:
        return None
    bias = getattr(norm, "bias", None)
    resolution = max(ENOUGH, 8 * torch.finfo(weight.dtype).eps)
    for centred in (False, True):
        for offset in (0, 1):
            x = numbers.double()
            x = x - x.mean(-1, keepdim=True) if centred else x
            made = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (weight.detach().double() + offset)
            if bias is not None:
                made = made + bias.detach().double()
            if bool(((made - expected.double()).abs() <= resolution * (made.abs() + 1)).all()):
                if bias is not None and not centred:
                    return None  # TransformerLens's root mean square has no bias
                return SimpleNamespace(
                    eps=eps, centred=centred, rmsnorm_uses_offset=bool(offset), uses_rms_norm=not centred
                )
    return None
