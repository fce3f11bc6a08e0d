"""The final norm and the unembedding of a model: as it computes them, and frozen, so that what is read is a sum.

LayerNorm and RMSNorm divide by a number that they take from the whole residual stream. With that number held fixed (the
norm "frozen at the position's statistics") they are linear, and a logit is the sum of what each component wrote into
the stream, read along one direction, and a constant.

When to use it: in analyses, which are given a cache and find the model there. No hook of the model fires.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.processed_weights import raw_unembedding
from lensplug.cache.activation_cache import ActivationCache
from lensplug.errors import LensplugError


def model_of(cache: ActivationCache, *, needed_by: str) -> Any:
    """The model that made a cache, for its weights.

    Raises:
        LensplugError: If the cache has lost it.
    """
    if cache.model is None:
        name = needed_by.replace("_", " ")
        raise LensplugError(
            f"the cache has lost its model (cache.model is None), and the {name} needs its unembedding: give it back"
            " with cache.model = lens.model."
        )
    return cache.model


def unembed(
    model: Any,
    residual: Float[Tensor, "row d_model"],
    *,
    final_norm: bool = True,
    out: Float[Tensor, "row d_vocab"] | None = None,
) -> Float[Tensor, "row d_vocab"]:
    """The model's final norm and unembedding, without firing its hooks; for use under `no_grad`.

    With the model's own order of operations and dtypes, so that the last residual gives its own logits.
    """
    b_U = model.unembed.b_U
    W_U = model.unembed.W_U if final_norm else raw_unembedding(model)
    x = residual.to(W_U.device)
    if final_norm:
        x = normalised(model, x)
    # HookedTransformer has a bias of zeros where the model has none: adding that would be one more pass over the rows.
    logits = torch.addmm(b_U, x, W_U, out=out) if bool(b_U.any()) else torch.mm(x, W_U, out=out)
    cap = soft_cap(model)
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def soft_cap(model: Any) -> float | None:
    """What the model squeezes its logits into, -cap to cap, by cap * tanh(logit / cap) (Gemma 2); None: it does not."""
    cap = model.cfg.output_logits_soft_cap
    return float(cap) if cap > 0 else None


def normalised(model: Any, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """After the final norm: LN, LNPre, RMS, RMSPre or none of a HookedTransformer, or a bridge's, written out."""
    cfg, norm = model.cfg, getattr(model, "ln_final", None)
    if cfg.normalization_type is None:
        return x
    native = getattr(norm, "original_component", None)  # of a bridge: Hugging Face's module
    folded = getattr(cfg, "layer_norm_folding", False)
    if native is not None and (folded or getattr(norm, "use_native_layernorm_autograd", False)):
        result: Tensor = native(x.to(cfg.dtype))
        return result
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    x, scale = _centred_and_scale(cfg, x)
    x = x / scale
    if native is None:  # HookedTransformer returns to the model's dtype before the weight, a bridge behind it
        x = x.to(cfg.dtype)
    weight, bias = _weight_and_bias(model)
    if weight is not None:
        x = x * weight
    if bias is not None:
        x = x + bias
    return x.to(cfg.dtype)


@dataclass(frozen=True)
class FrozenReading:
    """A linear reading of the stream at some rows: with the frozen norm, x @ direction + constant."""

    direction: Float[Tensor, "*row d_model"]
    """What a unit written into each dimension of the stream adds to the logit, in fp32 at least."""
    norm_bias: Float[Tensor, "*row"]
    """What the bias of a final LayerNorm adds; 0 without one."""


def frozen_reading(
    model: Any, residual: Float[Tensor, "*row d_model"], columns: Float[Tensor, "*row d_model"]
) -> FrozenReading:
    """How sums of columns of the unembedding are read from the stream, with the final norm frozen.

    Args:
        model: The model.
        residual: The stream at the end, whose statistics the norm keeps.
        columns: What is read of the normalised stream: columns of W_U, or weighted sums of them.
    """
    wide = torch.promote_types(residual.dtype, torch.float32)
    direction = columns.to(wide)
    if model.cfg.normalization_type is None:
        return FrozenReading(direction, direction.new_zeros(direction.shape[:-1]))
    _, scale = _centred_and_scale(model.cfg, residual.to(direction))
    weight, bias = _weight_and_bias(model)
    norm_bias = direction.new_zeros(direction.shape[:-1]) if bias is None else direction @ bias.to(direction)
    if weight is not None:
        direction = direction * weight.to(direction)
    if _is_centred(model.cfg):  # (x - mean(x)) . d = x . (d - mean(d))
        direction = direction - direction.mean(dim=-1, keepdim=True)
    return FrozenReading(direction / scale, norm_bias)


def _is_centred(cfg: Any) -> bool:
    return cfg.normalization_type in ("LN", "LNPre") and not cfg.final_rms


def _centred_and_scale(
    cfg: Any, x: Float[Tensor, "*row d_model"]
) -> tuple[Float[Tensor, "*row d_model"], Float[Tensor, "*row 1"]]:
    """The stream without its mean, where the final norm takes that out; and what the norm divides it by."""
    if _is_centred(cfg):
        x = x - x.mean(dim=-1, keepdim=True)
    return x, (x.pow(2).mean(dim=-1, keepdim=True) + cfg.eps).sqrt()


def _weight_and_bias(model: Any) -> tuple[Tensor | None, Tensor | None]:
    """What the final norm multiplies and adds; None where it was folded away, or there is none."""
    cfg, norm = model.cfg, model.ln_final
    if cfg.normalization_type not in ("LN", "RMS"):
        return None, None
    weight = norm.w.detach()
    if getattr(cfg, "rmsnorm_uses_offset", False):  # Gemma's norms multiply by 1 + weight
        weight = 1 + weight
    return weight, norm.b.detach() if cfg.normalization_type == "LN" and _is_centred(cfg) else None
