"""Refuse NaN and infinity where they arise: maps computed from them look like any other.

TransformerLens turns the rows of a pattern that are NaN into zeros, so that scores which overflow (fp16 ends at 65,504)
and NaN in what comes in give finite logits and plausible maps. Watched are therefore what comes in, the attention
scores before they become patterns, and the residual stream where it ends: what is not finite before is not so there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.patches.both.temporary_hooks import temporary_hooks

LARGER_RANGE = "use bfloat16 or float32 (fp16 ends at 65,504)"


def all_finite(value: Float[Tensor, ...]) -> bool:
    """Whether a tensor holds no NaN and no infinity.

    Its sum is looked at first, in one pass that makes nothing: the sum of what is not finite is not finite either.
    """
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def refuse_not_finite(name: str, value: Float[Tensor, ...], hint: str) -> None:
    """Raise if a tensor holds NaN or infinity.

    Raises:
        LensplugError: Then, with how many there are and the hint.
    """
    if not all_finite(value):
        bad = int((~value.isfinite()).sum())
        raise LensplugError(f"{name} hold NaN or infinity ({bad} of {value.numel()} numbers): {hint}.")


@contextmanager
def refuse_overflow(model: Any, attention_mask: Int[Tensor, "batch pos"], *, each_score: bool) -> Iterator[None]:
    """A scope that watches a model's activations, and raises at its end if attended positions were not finite.

    Scores of minus infinity are masks, also where a hook set them. A pass over scores and one over the last residual:
    the flags stay on their device until the end.

    Args:
        model: A model that an engine made.
        attention_mask: 1 = attended; values at padding are ignored.
        each_score: Look at attention scores too: where they are made in the model's dtype, and not of chosen rows.

    Raises:
        LensplugError: When it ends, if scores are NaN or plus infinity, or the residual stream is not finite.
    """
    not_finite_by_name: dict[str, Tensor] = {}

    def watch_scores(scores: Float[Tensor, "batch head query key"], hook: Any) -> None:
        highest = scores.detach().amax(dim=-1)  # of padding that is minus infinity
        note("attention scores", (highest.isnan() | highest.isposinf()).any())

    def watch_residual(residual: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
        residual = residual.detach()
        # What is not finite is among the extremes, NaN too: a tenth of the time of a look at each number.
        bad = ~(residual.amax(dim=-1).isfinite() & residual.amin(dim=-1).isfinite())
        if bad.shape == attention_mask.shape:  # not so for what is generated
            bad = bad & attention_mask.bool().to(bad.device)
        note("the residual stream", bad.any())

    def note(quantity: str, is_not_finite: Tensor) -> None:
        not_finite_by_name[quantity] = (
            is_not_finite
            if quantity not in not_finite_by_name
            else not_finite_by_name[quantity].to(is_not_finite.device) | is_not_finite
        )

    hooks: list[tuple[str, Any]] = [(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", watch_residual)]
    if each_score:
        scores = (f"blocks.{layer}.attn.hook_attn_scores" for layer in range(model.cfg.n_layers))
        hooks += [(name, watch_scores) for name in scores if name in model.hook_dict]
    with temporary_hooks(model, hooks):
        yield
    for quantity, is_not_finite in not_finite_by_name.items():
        if bool(is_not_finite):
            dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
            raise LensplugError(
                f"{quantity} of a {dtype} model overflowed or became NaN in this run, and all that follows from it"
                " would be"
                f" wrong: {LARGER_RANGE}; with query_positions attention is computed in fp32."
            )
