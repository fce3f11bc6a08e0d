"""Does the wrapped core compute what the full model computes? One question, answered with numbers.

Both run once. The residual streams before the last norm are compared at every position; what follows is the same at
each position, and is compared where the streams differ most, at the end of the prompt, and at places in between: all
rows of a vocabulary of 152,000 would take several times the memory of the run, and a good part of its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug import engines
from lensplug.hf.attention_choice import sdpa
from lensplug.hf.language_core import LanguageCore
from lensplug.provenance.versions import versions
from lensplug.running.score_range import ScoreRange

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""The largest difference of a logit that rounding explains, as a fraction of the largest logit.

For float64 it is that of float32: Hugging Face computes its norms in single precision all the same.
"""

ROWS = 128
"""Maximum number of positions per example whose logits are compared."""


@dataclass(frozen=True)
class ParityReport:
    """The full Hugging Face model (SDPA attention) against the wrapped core, on one input."""

    max_logit_difference: float
    """Over the positions whose logits were compared, in logits."""
    logit_scale: float
    """The largest logit of the full model, for comparison."""
    argmax_agreement: float
    """Fraction of those positions at which both have the same top token."""
    not_finite: int
    """Logits of the wrapped core that are NaN or infinite, at all positions that are not padding."""
    first_divergent_layer: int | None
    """The first block whose output differs by more than the tolerance; None where the logits agree."""
    tolerance: float
    """What `agrees` allows, in logits."""
    positions: int
    """Those that are not padding: the residual streams were compared at all of them."""
    compared: int
    """How many of them had their logits compared, those with the largest residual differences included."""
    overflowing_heads: int
    """Heads with a score beyond the range of float16: whole patterns of theirs would be wrong (chosen rows are not)."""
    dtype: str
    engine: str
    reference: str
    """What was run as the reference."""
    versions: Mapping[str, str]

    @property
    def agrees(self) -> bool:
        """No NaN, no overflow, and no logit further off than rounding in this dtype explains."""
        finite = self.not_finite == 0 and self.overflowing_heads == 0
        return finite and self.max_logit_difference <= self.tolerance

    def __str__(self) -> str:
        """One sentence, and where the models part."""
        verdict = "agrees with" if self.agrees else "DIFFERS from"
        text = (
            f"the wrapped core ({self.engine}, {self.dtype}) {verdict} {self.reference}: largest logit difference"
            f" {self.max_logit_difference:.2e} (allowed {self.tolerance:.2e}, largest logit {self.logit_scale:.1f}),"
            f" top token equal at {self.argmax_agreement:.1%} of {self.compared} positions, {self.not_finite} logits"
            f" not finite at {self.positions} positions"
        )
        if self.overflowing_heads:
            text += (
                f"; attention scores of {self.overflowing_heads} heads overflow in float16, and their whole patterns"
                " would be wrong: use dtype='bfloat16', or query_positions"
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
    engine: engines.EngineName | None = None,
    whole_patterns: bool = False,
) -> ParityReport:
    """Run both and compare.

    Args:
        hf_model: The full model.
        core: Its language core.
        model: The wrapped core.
        model_inputs: For the reference.
        wrapped_input: For the wrapped core.
        attention_mask: Which positions count.
        centered: Compare logits less their mean at each position (processed weights are centred).
        engine: The wrapped core's, a key of `engines.ENGINES`.
        whole_patterns: Let the wrapped core make whole patterns, as it does where they are kept.
    """
    is_real = attention_mask.bool()
    attending = (
        nullcontext() if whole_patterns or not engine else engines.at_sdpa_speed(engine, model, len(attention_mask))
    )
    scores = ScoreRange(model, is_real) if core.dtype == torch.float16 and not whole_patterns else None
    with torch.inference_mode(False), torch.no_grad(), sdpa(core), attending:
        met = _meet(hf_model, core, model, model_inputs, wrapped_input, is_real, scores)
        reference, wrapped = (_at(logits, met.counted, centered) for logits in (met.reference, met.wrapped))
        argmax_agreement = float((reference.argmax(-1) == wrapped.argmax(-1)).float().mean())
        scale = _largest_allowed(reference, wrapped, torch.finfo(met.reference.dtype).min)
        tolerance = TOLERANCE[core.dtype] * max(scale, 1.0)
        not_finite = int((~wrapped.isfinite()).sum()) + met.lost_elsewhere * wrapped.shape[-1]
        difference = float(wrapped.sub_(reference).abs_().nan_to_num_(nan=torch.inf).max())
        parted = not_finite > 0 or not difference <= tolerance
        layer = _first_divergent_layer(hf_model, core, model, model_inputs, wrapped_input, is_real) if parted else None
    return ParityReport(
        max_logit_difference=difference,
        logit_scale=scale,
        argmax_agreement=argmax_agreement,
        not_finite=not_finite,
        first_divergent_layer=layer,
        tolerance=tolerance,
        positions=int(is_real.sum()),
        compared=int(met.counted.sum()),
        overflowing_heads=0 if scores is None else scores.beyond,
        dtype=str(core.dtype).removeprefix("torch."),
        engine=engine or "",
        reference=f"{type(hf_model).__name__} (SDPA)",
        versions=versions("transformer-lens", "transformers", "torch"),
    )


@dataclass(frozen=True)
class _Met:
    """Outputs of both models for one input."""

    reference: Float[Tensor, "batch row d_vocab"]
    wrapped: Float[Tensor, "batch row d_vocab"]
    counted: Bool[Tensor, "batch row"]
    """Rows that are not padding."""
    lost_elsewhere: int
    """Positions that are no rows, with a stream of the wrapped core that is not finite: nor are their logits."""


def _meet(
    hf_model: Any,
    core: LanguageCore,
    model: Any,
    model_inputs: Mapping[str, Any],
    wrapped_input: Any,
    is_real: Bool[Tensor, "batch pos"],
    scores: ScoreRange | None,
) -> _Met:
    """Run both once, and unembed the same rows.

    The wrapped core runs before the full model's head does: the rows to compare are known when the
    stream of the one meets that of the other, and neither has made its logits yet.
    """
    streams: list[Tensor] = []
    wrapped: list[Tensor] = []
    lost = torch.zeros_like(is_real)
    rows = torch.zeros(
        len(is_real), min(ROWS, is_real.shape[1]), dtype=torch.long, device=is_real.device
    )  # filled in on the way

    def choose(resid: Tensor, hook: Any) -> None:
        rows.copy_(_worth_a_look(streams[-1].float(), resid.float(), is_real))
        lost.copy_(~resid.isfinite().all(dim=-1) & is_real)

    def at_the_head(head: Any, given: tuple[Tensor]) -> tuple[Tensor]:
        # On the point itself: TransformerLens looks through all hook points to find one, and to take its hook away.
        handle = model.blocks[-1].hook_resid_post.register_forward_hook(lambda point, _, resid: choose(resid, point))
        try:
            with engines.logit_rows(model, rows):
                wrapped.append(run(wrapped_input, return_type="logits"))
        finally:
            handle.remove()
        return (given[0].gather(1, rows[..., None].expand(-1, -1, given[0].shape[-1])),)

    run = model if scores is None else partial(model.run_with_hooks, fwd_hooks=scores.hooks)
    handles = [
        core.decoder.layers[-1].register_forward_hook(lambda _, __, output: streams.append(_stream(output))),
        core.head.register_forward_pre_hook(at_the_head),
    ]
    try:
        reference = hf_model(**model_inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    lost_elsewhere = int(lost.scatter(1, rows, False).sum())
    return _Met(reference, wrapped[0], is_real.gather(1, rows), lost_elsewhere)


def _worth_a_look(
    reference: Float[Tensor, "batch pos d_model"], wrapped: Float[Tensor, "batch pos d_model"], is_real: Tensor
) -> Int[Tensor, "batch row"]:
    """For each example the last positions, some evenly spaced ones, and those whose streams differ most; sorted."""
    length, count = is_real.shape[1], min(ROWS, is_real.shape[1])
    # Relative to the stream's own size: so the last norm sees it.
    size = reference.square().mean(dim=-1).sqrt().clamp(min=1e-6)
    relative_difference = ((wrapped - reference).abs().amax(dim=-1) / size).nan_to_num(nan=torch.inf, posinf=torch.inf)
    score = relative_difference / (1 + relative_difference)
    score = torch.where(relative_difference.isinf(), 1.0, score)
    places = torch.arange(length, device=is_real.device)
    evenly = places % max(1, 4 * length // count) == 0  # a quarter of the rows
    last = is_real & (is_real.flip(1).cumsum(1).flip(1) <= count // 4)
    score = torch.where(is_real, score + 2.0 * (evenly | last), -1.0)
    return score.topk(count, dim=1).indices.sort(dim=1).values


def _stream(output: Any) -> Tensor:
    """What a decoder's layer returns, in every version of transformers."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def _at(
    logits: Float[Tensor, "batch row d_vocab"], is_chosen: Bool[Tensor, "batch row"], centered: bool
) -> Float[Tensor, "position d_vocab"]:
    chosen = logits[is_chosen].float()
    return chosen.sub_(chosen.mean(dim=-1, keepdim=True)) if centered else chosen


def _largest_allowed(
    reference: Float[Tensor, "position d_vocab"], wrapped: Float[Tensor, "position d_vocab"], least: float
) -> float:
    """The largest logit; those that both models forbid, by the least number of their dtype, become zero in both."""
    if float(reference.min()) > least:
        return float(reference.abs().max())
    is_forbidden = reference <= least
    in_both = is_forbidden & (wrapped <= least)
    reference.masked_fill_(in_both, 0.0)
    wrapped.masked_fill_(in_both, 0.0)
    return float(reference.masked_fill(is_forbidden, 0.0).abs().max())


def _first_divergent_layer(
    hf_model: Any, core: LanguageCore, model: Any, model_inputs: Mapping[str, Any], wrapped_input: Any, is_real: Tensor
) -> int | None:
    """The first block after which the residual streams differ by more than the tolerance.

    Compared is what the next block receives: a model may add something in between.
    """
    reference: list[Tensor] = []

    def keep(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        reference.append((args[0] if args else kwargs["hidden_states"])[is_real].float())

    norm = getattr(core.decoder, "norm", None)  # OPT's has another name: its last layer is then not compared
    following = [*core.decoder.layers[1:], *([] if norm is None else [norm])]
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in following]
    try:
        with torch.no_grad(), sdpa(core):
            hf_model(**model_inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    differences: list[bool] = []

    def compare_layer(resid: Tensor, hook: Any) -> None:
        expected = reference[hook.layer()]
        largest = (resid[is_real].float() - expected).abs().nan_to_num(nan=torch.inf).max()
        differences.append(not float(largest) <= TOLERANCE[core.dtype] * max(float(expected.abs().max()), 1.0))

    with torch.no_grad():
        model.run_with_hooks(
            wrapped_input,
            return_type=None,
            fwd_hooks=[(f"blocks.{layer}.hook_resid_post", compare_layer) for layer in range(len(reference))],
        )
    return differences.index(True) if True in differences else None
