"""Does the wrapped core compute what the full model computes? One question, answered with numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.core import LanguageCore, sdpa
from lensplug.versions import versions

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""The largest difference of a logit that rounding explains, as a fraction of the largest logit.

For float64 it is that of float32: Hugging Face computes its norms in single precision all the same.
"""


@dataclass(frozen=True)
class ParityReport:
    """The full Hugging Face model (SDPA attention) against the wrapped core, on one input."""

    max_logit_difference: float
    """Over all positions that are not padding, in logits."""
    logit_scale: float
    """The largest logit of the full model, for comparison."""
    argmax_agreement: float
    """Fraction of positions at which both have the same top token."""
    not_finite: int
    """Logits of the wrapped core that are NaN or infinite."""
    first_divergent_layer: int | None
    """The first block whose output differs by more than the tolerance; None where the logits agree."""
    tolerance: float
    """What `agrees` allows, in logits."""
    positions: int
    dtype: str
    engine: str
    reference: str
    """What was run as the reference."""
    versions: Mapping[str, str]

    @property
    def agrees(self) -> bool:
        """No NaN, and no logit further off than rounding in this dtype explains."""
        return self.not_finite == 0 and self.max_logit_difference <= self.tolerance

    def __str__(self) -> str:
        """One sentence, and where the models part."""
        verdict = "agrees with" if self.agrees else "DIFFERS from"
        text = (
            f"the wrapped core ({self.engine}, {self.dtype}) {verdict} {self.reference}: largest logit difference"
            f" {self.max_logit_difference:.2e} (allowed {self.tolerance:.2e}, largest logit {self.logit_scale:.1f}),"
            f" top token equal at {self.argmax_agreement:.1%} of {self.positions} positions, {self.not_finite} logits"
            " not finite"
        )
        if self.first_divergent_layer is not None:
            text += f"; they part at layer {self.first_divergent_layer}"
        return text + "."


def compare(
    hf_model: Any,
    core: LanguageCore,
    model: Any,
    *,
    model_inputs: Mapping[str, Any],
    wrapped_input: Any,
    attention_mask: Int[Tensor, "batch pos"],
    centered: bool = False,
    engine: str = "",
) -> ParityReport:
    """Run both and compare.

    Args:
        hf_model: The full model, or whatever computes the reference logits from `model_inputs`.
        core: Its language core.
        model: The wrapped core.
        model_inputs: For the reference.
        wrapped_input: For the wrapped core.
        attention_mask: Which positions count.
        centered: Compare logits less their mean at each position (processed weights are centred).
        engine: For the report.
    """
    at = attention_mask.bool()
    with torch.no_grad(), sdpa(core):
        reference = _at(hf_model(**model_inputs, use_cache=False).logits, at, centered)
        wrapped = _at(model(wrapped_input, return_type="logits"), at, centered)
    scale = float(reference.abs().max())
    tolerance = TOLERANCE[core.dtype] * max(scale, 1.0)
    difference = (reference - wrapped).abs().nan_to_num(nan=torch.inf).max()
    parted = not float(difference) <= tolerance
    return ParityReport(
        max_logit_difference=float(difference),
        logit_scale=scale,
        argmax_agreement=float((reference.argmax(-1) == wrapped.argmax(-1)).float().mean()),
        not_finite=int((~wrapped.isfinite()).sum()),
        first_divergent_layer=_first_divergent_layer(hf_model, core, model, model_inputs, wrapped_input, at)
        if parted
        else None,
        tolerance=tolerance,
        positions=int(at.sum()),
        dtype=str(core.dtype).removeprefix("torch."),
        engine=engine,
        reference=f"{type(hf_model).__name__} (SDPA)",
        versions=versions("transformer-lens", "transformers", "torch"),
    )


def _at(logits: Float[Tensor, "batch pos d_vocab"], at: Tensor, centered: bool) -> Float[Tensor, "position d_vocab"]:
    chosen = logits[at].float()
    return chosen - chosen.mean(dim=-1, keepdim=True) if centered else chosen


def _first_divergent_layer(
    hf_model: Any, core: LanguageCore, model: Any, model_inputs: Mapping[str, Any], wrapped_input: Any, at: Tensor
) -> int | None:
    """The first block after which the residual streams differ by more than the tolerance."""
    reference: list[Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda _, __, output: reference.append((output[0] if isinstance(output, tuple) else output)[at].float())
        )
        for layer in core.decoder.layers
    ]
    try:
        with torch.no_grad(), sdpa(core):
            hf_model(**model_inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    differences: list[bool] = []

    def compare_layer(resid: Tensor, hook: Any) -> None:
        expected = reference[hook.layer()]
        largest = (resid[at].float() - expected).abs().nan_to_num(nan=torch.inf).max()
        differences.append(not float(largest) <= TOLERANCE[core.dtype] * max(float(expected.abs().max()), 1.0))

    with torch.no_grad():
        model.run_with_hooks(
            wrapped_input,
            return_type=None,
            fwd_hooks=[(f"blocks.{layer}.hook_resid_post", compare_layer) for layer in range(len(reference))],
        )
    return differences.index(True) if True in differences else None
