"""What the parts of one block write along a direction of the residual stream: heads, their sources, neurons, biases.

A direction is taken back through the weights once (W_O d, W_out d), and activations are multiplied with that: no output
of a head, `[pos d_model]` for each, is ever made. Where a norm follows attention or MLP (Gemma 2 and 3), it is frozen
too, at the statistics of the output at that row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.processed_weights import folded_value_bias
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import attention_of_layer, read, read_rows
from lensplug.errors import LensplugError

Directions = Float[Tensor, "example row d_model"]


@dataclass(frozen=True)
class Written:
    """What the parts of one sublayer write along the directions, summed over the rows."""

    parts: Float[Tensor, "example part *source"]
    bias: Float[Tensor, " example"]
    """What the output bias writes."""
    squares: Float[Tensor, " example"]
    """The sum of the squares of the products that were added up: what rounding grows with."""

    def times(self, number: float) -> Written:
        """The same, of a stream that is multiplied behind it."""
        return self if number == 1 else Written(self.parts * number, self.bias * number, self.squares * number**2)


def heads(
    cache: ActivationCache, layer: int, rows: Int[Tensor, "example row"], directions: Directions, *, needed_by: str
) -> Written:
    """What each head of a layer writes at some rows.

    Of `hook_z` where the cache holds it, else of patterns and value vectors.
    """
    attn = attention_of_layer(cache.model, layer)
    name = f"blocks.{layer}.attn.hook_z"
    if name in cache.cache_dict:
        z = _at(read(cache, name, needed_by=needed_by), rows).to(directions)
        bias = folded_value_bias(cache.model, layer)
        if bias is not None:  # the rows of a pattern sum to 1
            z = z + _for_each_head(bias.to(z), z.shape[-2], axis=0)
    else:
        pattern = _pattern(cache, layer, rows, needed_by=needed_by).to(directions)
        v = _for_each_head(_values(cache, layer, needed_by=needed_by).to(directions), pattern.shape[1], axis=2)
        z = torch.einsum("bhrk,bkhd->brhd", pattern, v)
    before_norm, bias_written = _before_attention_norm(cache, layer, z, directions)
    products = z * _into_heads(attn, before_norm)
    return Written(products.sum(dim=(1, 3)), bias_written, products.square().sum(dim=(1, 2, 3)))


def sources(
    cache: ActivationCache, layer: int, rows: Int[Tensor, "example row"], directions: Directions, *, needed_by: str
) -> Written:
    """What each head of a layer brings to some rows from each key: pattern * (v W_O d)."""
    attn = attention_of_layer(cache.model, layer)
    pattern = _pattern(cache, layer, rows, needed_by=needed_by).to(directions)
    v = _values(cache, layer, needed_by=needed_by)
    groups, count = v.shape[2], pattern.shape[1]
    z = torch.einsum("bhrk,bkhd->brhd", pattern, _for_each_head(v.to(directions), count, axis=2))
    before_norm, bias_written = _before_attention_norm(cache, layer, z, directions)
    back = _into_heads(attn, before_norm)
    # Heads that share keys and values stay together: repeating these would take their memory several times.
    by_group = back.view(*back.shape[:2], groups, count // groups, back.shape[-1])
    brought = pattern * torch.einsum("bkgd,brgnd->bgnrk", v.to(directions), by_group).flatten(1, 2)
    squares = (z * back).square().sum(dim=(1, 2, 3)) + brought.square().sum(dim=(1, 2, 3))
    return Written(brought.sum(dim=2), bias_written, squares)


def neurons(
    cache: ActivationCache, layer: int, rows: Int[Tensor, "example row"], directions: Directions, *, needed_by: str
) -> Written:
    """What each neuron of a layer's MLP writes at some rows.

    Raises:
        LensplugError: If the layer has no plain output weight (a mixture of experts).
    """
    mlp = getattr(cache.model.blocks[layer], "mlp", None)
    W_out = getattr(mlp, "W_out", None)
    if not isinstance(W_out, Tensor) or W_out.ndim != 2:
        raise LensplugError(
            f"by='neuron' reads the output weight of each MLP, [d_mlp, d_model], and layer {layer} has none such"
            f" ({type(mlp).__name__}): use by='layer', or 'head'."
        )
    W_out, b_out = W_out.detach().to(directions), _bias(mlp, "b_out", directions)
    post = _at(read(cache, f"blocks.{layer}.mlp.hook_post", needed_by=needed_by), rows).to(directions)
    norm = _norm_behind(cache.model, layer, "ln2_post")
    before_norm = directions if norm is None else _frozen(cache.model, norm, post @ W_out + b_out, directions)
    products = post * (before_norm @ W_out.T)
    return Written(products.sum(dim=1), (before_norm @ b_out).sum(dim=1), products.square().sum(dim=(1, 2)))


def _before_attention_norm(
    cache: ActivationCache, layer: int, z: Float[Tensor, "example row head d_head"], directions: Directions
) -> tuple[Directions, Float[Tensor, " example"]]:
    """The direction at the output of attention, before a norm behind it, and what the output bias writes along it.

    A value bias that processing folded into b_O is the heads' again, and here no longer.
    """
    attn = attention_of_layer(cache.model, layer)
    W_O, b_O = attn.W_O.detach().to(directions), _bias(attn, "b_O", directions)
    bias = folded_value_bias(cache.model, layer)
    if bias is not None:
        b_O = b_O - torch.einsum("hd,hdm->m", _for_each_head(bias.to(directions), W_O.shape[0], axis=0), W_O)
    norm = _norm_behind(cache.model, layer, "ln1_post")
    if norm is not None:
        directions = _frozen(cache.model, norm, torch.einsum("brhd,hdm->brm", z, W_O) + b_O, directions)
    return directions, (directions @ b_O).sum(dim=1)


def _into_heads(attn: Any, directions: Directions) -> Float[Tensor, "example row head d_head"]:
    return torch.einsum("brm,hdm->brhd", directions, attn.W_O.detach().to(directions))


def _norm_behind(model: Any, layer: int, name: str) -> Any:
    """The norm between a sublayer and the stream; None in most models.

    Raises:
        LensplugError: If it is one that is not known.
    """
    norm = getattr(model.blocks[layer], name, None)
    if norm is not None and not getattr(norm, "uses_rms_norm", "RMS" in type(norm).__name__):
        raise LensplugError(
            f"{name} of layer {layer} is a {type(norm).__name__}, and only RMS norms are known there: use by='layer'."
        )
    return norm


def _frozen(model: Any, norm: Any, output: Float[Tensor, "example row d_model"], directions: Directions) -> Directions:
    """A direction of the stream, taken back through an RMS norm that is frozen at the statistics of its input."""
    scale = (output.pow(2).mean(dim=-1, keepdim=True) + model.cfg.eps).sqrt()
    weight = getattr(norm, "w", None)  # none where it was folded
    if weight is not None:
        offset = int(getattr(model.cfg, "rmsnorm_uses_offset", False))  # Gemma's norms multiply by 1 + weight
        directions = directions * (weight.detach().to(directions) + offset)
    before_norm: Tensor = directions / scale
    return before_norm


def _pattern(
    cache: ActivationCache, layer: int, rows: Int[Tensor, "example row"], *, needed_by: str
) -> Float[Tensor, "example head row key"]:
    return next(read_rows(cache, [layer], rows, needed_by=needed_by))


def _values(cache: ActivationCache, layer: int, *, needed_by: str) -> Float[Tensor, "example key kv_head d_head"]:
    """The value vectors, with a bias that processing moved into the output bias."""
    v = read(cache, f"blocks.{layer}.attn.hook_v", needed_by=needed_by)
    bias = folded_value_bias(cache.model, layer)
    return v if bias is None else v + bias.to(v)


def _for_each_head(values: Tensor, heads: int, *, axis: int) -> Tensor:
    """Key and value heads repeated for the heads that share them."""
    repeated: Tensor = values.repeat_interleave(heads // values.shape[axis], dim=axis)
    return repeated


def _at(
    value: Float[Tensor, "example pos *rest"], rows: Int[Tensor, "example row"]
) -> Float[Tensor, "example row *rest"]:
    examples = torch.arange(len(value), device=value.device)[:, None]
    return value[examples, rows.to(value.device)]


def _bias(part: Any, name: str, like: Tensor) -> Float[Tensor, " d_model"]:
    bias = getattr(part, name, None)
    return like.new_zeros(like.shape[-1]) if bias is None else bias.detach().to(like)
