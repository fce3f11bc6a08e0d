"""What a cache holds of the way each layer mixes positions: its heads fused, and the weight of the residual stream.

`reductions.mixing` says how the numbers are made; here they are read, for the analyses that go through layers
(`attention_rollout`, `attention_flow`), and what an option needs and the cache does not hold is refused.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.processed_weights import refuse_centred_stream, whole_values
from lensplug.cache.activation_cache import ActivationCache, known
from lensplug.cache.reading import n_layers, read, read_head_mean, read_pattern
from lensplug.errors import LensplugError
from lensplug.reductions.mixing import Mixing, measured_residual, value_gram


def layer_range(layers: tuple[int, int] | None, n: int) -> range:
    """The layers from the first to the last that are named; all for None.

    Raises:
        LensplugError: If there are no such layers.
    """
    if layers is None:
        return range(n)
    first, last = (layer + n if layer < 0 else layer for layer in layers)
    if not 0 <= first <= last < n:
        raise LensplugError(f"layers is {layers}, expected the first and the last of 0 to {n - 1}, in this order.")
    return range(first, last + 1)


def read_fused(
    cache: ActivationCache, mixing: Mixing, layer: int, *, needed_by: str
) -> Float[Tensor, "batch query key"]:
    """One layer's heads, fused as `mixing` says; rows are not normalised yet.

    Raises:
        LensplugError: If the cache lacks what that needs.
    """
    if not mixing.needs_patterns:
        return read_head_mean(cache, layer, needed_by=needed_by)
    pattern = read_pattern(cache, layer, needed_by=needed_by)
    mixing.check_heads(n_layers(cache), pattern.shape[1])
    gram = None
    if mixing.head_fusion == "value_weighted":
        v = _also(cache, f"blocks.{layer}.attn.hook_v", "head_fusion='value_weighted'", needed_by)
        if cache.model is None:
            raise LensplugError("head_fusion='value_weighted' reads the model's W_O: cache.model = lens.model.")
        v = whole_values(cache.model, layer, v, "head_fusion='value_weighted'")
        gram = value_gram(v, _into_the_stream(cache.model, layer).to(v.device))
    return mixing.fused(pattern, mixing.heads_of(layer), gram)


def _into_the_stream(model: Any, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """W_O, followed by the norm between attention and residual stream that some models have (Gemma 2 and 3).

    Its scale is one number for each row, which normalising the row takes out again; its weight is not.
    """
    block = model.blocks[layer]
    out: Tensor = block.attn.W_O.detach()
    norm = getattr(block, "ln1_post", None)
    if norm is None:
        return out
    centred = getattr(norm, "uses_rms_norm", "RMS" in type(norm).__name__) is False
    out = out - out.mean(dim=-1, keepdim=True) if centred else out
    weight = getattr(norm, "w", None)  # none where it was folded
    if weight is None:
        return out
    offset = getattr(model.cfg, "rmsnorm_uses_offset", False)  # Gemma's norms multiply by 1 + weight
    through: Tensor = out * (weight.detach() + int(offset)).to(out)
    return through


def read_residual_weight(
    cache: ActivationCache, mixing: Mixing, layer: int, *, needed_by: str
) -> float | Float[Tensor, "batch pos"]:
    """The weight of the residual stream in one layer: the same for all positions, or each position's own.

    Raises:
        LensplugError: If it is to be measured, and the cache lacks the streams.
    """
    if not isinstance(mixing.residual, str):
        return mixing.residual
    refuse_centred_stream(cache.model, "residual='measured'")
    names = (f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_attn_out")
    return measured_residual(*(_also(cache, name, "residual='measured'", needed_by) for name in names))


def _also(cache: ActivationCache, name: str, option: str, needed_by: str) -> Tensor:
    """An activation that an option needs in addition to patterns."""
    if name not in cache.cache_dict and cache.model is not None and not hasattr(cache.model, "blocks"):
        raise LensplugError(
            f"{option} needs {name!r}, and a cache made from attentions alone does not have it: leave the option out,"
            " or run"
            " the model under lensplug.wrap if that supports it."
        )
    if name not in cache.cache_dict or known(cache, "residual_positions") is not None:
        raise LensplugError(
            f"{option} needs {name!r} of every position: run without names_filter, needs and residual_positions, or"
            f" with names_filter=lambda name: name.endswith(('hook_pattern', {name.rpartition('.')[2]!r}, ...))."
        )
    return read(cache, name, needed_by=needed_by)
