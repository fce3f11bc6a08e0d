"""Undo what TransformerLens's weight processing changes in intermediate numbers, or refuse by name.

Processing leaves outputs and patterns unchanged, but not all intermediate numbers: the final norm's weight is folded
into the unembedding (affects a raw logit lens), value biases into the output bias (affects value vectors), writing
weights are centered (affects norms of the stream in LayerNorm models), and the unembedding is centered (affects the
logit of a single token, and its gradients). For a lens's model the original weights are known
(`lensplug.provenance.fingerprint`) and used instead. For a model that TransformerLens processed by itself they are
lost.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.cache.reading import attention_of_layer
from lensplug.errors import LensplugError
from lensplug.provenance.fingerprint import made_of

UNPROCESSED = (
    "load it without processing (HookedTransformer.from_pretrained_no_processing, a bridge without"
    " enable_compatibility_mode), or use lensplug.wrap, which remembers what was folded."
)


def is_folded(model: Any) -> bool:
    """Whether the norms of a model were folded into the weights behind them."""
    cfg = getattr(model, "cfg", None)
    if getattr(cfg, "normalization_type", None) in ("LNPre", "RMSPre"):
        return True
    # A bridge keeps its norms; what was folded out of them leaves 1, or 0 where they multiply by 1 + weight.
    w = getattr(getattr(model, "ln_final", None), "w", None) if getattr(model, "_weights_processed", False) else None
    return w is not None and bool((w == (0 if getattr(cfg, "rmsnorm_uses_offset", False) else 1)).all())


def raw_unembedding(model: Any) -> Float[Tensor, "d_model d_vocab"]:
    """W_U without the final norm's weight, for residuals that go through no norm.

    Raises:
        LensplugError: If that cannot be known.
    """
    refuse_centred_stream(model, "logit_lens(final_norm=False)")
    W_U: Tensor = model.unembed.W_U
    if not is_folded(model):
        return W_U
    origin = made_of(model)
    if origin is None:
        raise LensplugError(
            "logit_lens(final_norm=False) is of the raw unembedding, and this model's has the final norm's weight"
            f" folded into it: {UNPROCESSED} Or read it with final_norm=True."
        )
    return origin.unembedding.detach().T.to(W_U)


def whole_values(
    model: Any, layer: int, v: Float[Tensor, "batch key kv_head d_head"], option: str
) -> Float[Tensor, "batch key kv_head d_head"]:
    """Value vectors with their bias, even if it was folded into the output bias.

    Raises:
        LensplugError: If that cannot be known.
    """
    refuse_centred_stream(model, option)
    bias = folded_value_bias(model, layer)
    if bias is not None:
        return v + bias.to(v)
    if may_have_folded_values(model, layer):
        raise LensplugError(
            f"{option} measures value vectors with their bias, and in this model's layer {layer} it may have been"
            f" folded into the output bias: {UNPROCESSED}"
        )
    return v


def folded_value_bias(model: Any, layer: int) -> Float[Tensor, "kv_head d_head"] | None:
    """The value bias that processing moved into the output bias of a layer; None if it moved none, or unknown."""
    attn = attention_of_layer(model, layer)
    origin = made_of(model) if is_folded(model) and not bool(_or_zeros(attn, "b_V").any()) else None
    bias = None if origin is None else origin.value_biases[layer]
    return None if bias is None else bias.detach().view(-1, attn.W_O.shape[-2])


def may_have_folded_values(model: Any, layer: int) -> bool:
    """Whether the output bias of a layer may hold a value bias, in a model that TransformerLens processed by itself."""
    attn = attention_of_layer(model, layer)
    is_known = not is_folded(model) or bool(_or_zeros(attn, "b_V").any()) or made_of(model) is not None
    return not is_known and bool(_or_zeros(attn, "b_O").any())


def refuse_centred_stream(model: Any, option: str) -> None:
    """Refuse a LayerNorm model whose weights write no mean to the stream.

    Raises:
        LensplugError: If it is one.
    """
    cfg = getattr(model, "cfg", None)
    if getattr(cfg, "normalization_type", None) not in ("LN", "LNPre") or getattr(cfg, "final_rms", False):
        return
    attn = next(block.attn for block in model.blocks if hasattr(block, "attn"))
    W_O = attn.W_O.detach().float()
    if float(W_O.mean(dim=-1).abs().max()) < 1e-5 * float(W_O.square().mean().sqrt()):
        raise LensplugError(
            f"{option} depends on the mean of the residual stream, which this model's centered weights have removed:"
            f" {UNPROCESSED}"
        )


def refuse_centred_logits(model: Any, what: str) -> None:
    """Refuse a number that changes where logits have lost their mean at each position.

    Raises:
        LensplugError: If the unembedding of the model is centred.
    """
    if has_centred_logits(model):
        raise LensplugError(
            f"{what} changes under processed weights, whose logits are centered at each position: use"
            " lensplug.wrap(..., process_weights=False)."
        )


def has_centred_logits(model: Any) -> bool:
    """Whether the logits of a model have lost their mean at each position: its unembedding is centred."""
    unembed = getattr(model, "unembed", None)
    if unembed is None or not is_folded(model):
        return False
    W_U = unembed.W_U.detach()
    # A sample of rows: means over a vocabulary of 150,000 for all 4,096 rows would take long each time.
    rows = W_U[:: max(1, len(W_U) // 8)].float()
    return float(rows.mean(dim=-1).abs().max()) < 1e-5 * float(rows.square().mean().sqrt())


def _or_zeros(attn: Any, name: str) -> Tensor:
    bias = getattr(attn, name, None)
    return torch.zeros(()) if bias is None else bias.detach()
