"""Checks that tensors are self-attention patterns of every layer; others are refused with advice.

All attention tensors look alike. Rows that do not sum to 1, undeclared padding, or a decoder's cross-attention would
give smooth but meaningless rollouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.validation.arguments import described
from lensplug.validation.finite import all_finite

AttentionDirection = Literal["causal", "bidirectional"]
"""Whether a position looks at itself and those before it, or at all."""

ROUNDING = 2**-8
"""Tolerance of row sums: the rounding of weights in bfloat16."""


def of_layers(attentions: Any) -> list[Tensor]:
    """One square attention for each layer, all of one shape.

    Raises:
        LensplugError: If there is none, or one is no such tensor.
    """
    if isinstance(attentions, Mapping):
        attention_names = [name for name in attentions if name.endswith("attentions")]
        names = (
            f"one of its {', '.join(attention_names)}"
            if attention_names
            else "outputs.attentions (it has none: output_attentions=True)"
        )
        raise LensplugError(f"attentions is a whole {type(attentions).__name__}: give {names}.")
    if attentions is not None and not isinstance(attentions, Sequence | Tensor):
        raise LensplugError(
            f"attentions is {described(attentions)}, expected outputs.attentions, a tensor for each layer."
        )
    layers = [] if attentions is None else list(attentions)
    if not layers or any(layer is None for layer in layers):
        raise LensplugError(
            "the model returned no attention: call model.set_attn_implementation('eager') (or load it with"
            " attn_implementation='eager': SDPA and flash attention return none) and model(**batch,"
            " output_attentions=True)."
        )
    for index, layer in enumerate(layers):
        _check_shape(layer, index, layers[0])
    return layers


def _check_shape(layer: Any, index: int, first: Any) -> None:
    if not isinstance(layer, Tensor):
        raise LensplugError(
            f"entry {index} of attentions is a {type(layer).__name__}, expected a tensor [batch head query key]:"
            " generate returns a tuple for each step; run the model once on the finished sequence, with"
            " use_cache=False."
        )
    shape = list(layer.shape)
    if layer.ndim != 4:
        raise LensplugError(
            f"the attention of layer {index} has the shape {shape}, expected [batch head query key]: give a tuple with"
            " one such tensor for each layer."
        )
    if shape[2] != shape[3]:
        raise LensplugError(
            f"the attention of layer {index} has the shape {shape}, expected as many queries as keys: cross attention"
            " is no mixing of positions (give encoder_attentions or decoder_attentions), and a step with a key-value"
            " cache has one row (run once on the whole sequence, with use_cache=False)."
        )
    if layer.shape != first.shape:
        raise LensplugError(
            f"the attention of layer {index} has the shape {shape}, that of layer 0 {list(first.shape)}: layers of"
            " one run of one length have one shape (windows, pooling between layers and pruned heads cannot be read)."
        )


def check_weights(pattern: Float[Tensor, "batch head query key"], layer: int) -> None:
    """Refuse weights that are not finite or below 0."""
    if not all_finite(pattern):
        raise LensplugError(
            f"the attention of layer {layer} holds NaN or infinity: in fp16 attention scores can overflow; use"
            " bfloat16 or float32."
        )
    if float(pattern.min()) < 0:
        raise LensplugError(
            f"the attention of layer {layer} has weights from {float(pattern.min()):.4g} to {float(pattern.max()):.4g},"
            " expected 0 to 1: these are not attention after the softmax."
        )


def scaled(
    pattern: Float[Tensor, "batch head query key"], layer: int, mask: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch head query key"]:
    """Rows scaled to sum 1; padding's may be nothing.

    Raises:
        LensplugError: If another row is nothing but zeros.
    """
    total = pattern.float().sum(dim=-1, keepdim=True)
    if bool(((total[..., 0] == 0) & mask.to(total.device).bool()[:, None]).any()):
        raise LensplugError(
            f"the attention of layer {layer} has rows that are nothing but zeros, which normalize=True cannot scale:"
            " give attention_mask= where they are padding."
        )
    return torch.where(total > 0, pattern / total, 0.0).to(pattern.dtype)


def check_rows(pattern: Float[Tensor, "batch head query key"], layer: int, mask: Int[Tensor, "batch pos"]) -> None:
    """Refuse rows, of positions that are not padding, that do not sum to 1 or have weight on padding."""
    looking = mask.to(pattern.device).bool()[:, None].expand(pattern.shape[:3])
    sums = pattern.float().sum(dim=-1)[looking]
    off = float((sums - 1).abs().max()) if len(sums) else 0.0
    if off > ROUNDING:
        raise LensplugError(
            f"rows of the attention of layer {layer} sum to {float(sums.min()):.4g} to {float(sums.max()):.4g},"
            f" expected 1 (off by up to {off:.2g}): with dropout active they do not, call model.eval() before the run;"
            " where weights were rounded or cut, normalize=True scales the rows."
        )
    hidden = (mask == 0).to(pattern.device)[:, None, None]
    leaked = float((pattern.float() * hidden).sum(dim=-1)[looking].max()) if len(sums) else 0.0
    if leaked > ROUNDING:
        raise LensplugError(
            f"attention_mask says that some positions are padding, and up to {leaked:.2g} of a row of layer {layer} is"
            " on them: give the mask that the model was run with (none if it was run without)."
        )


def check_seen(seen: Bool[Tensor, "batch pos"]) -> None:
    """Refuse positions that no row has weight on.

    A softmax leaves every position something, if only its own look at itself: what gets nothing was masked.
    """
    if bool(seen.all()):
        return
    example = int((~seen.all(dim=1)).nonzero()[0])
    raise LensplugError(
        f"no position of example {example} looks at the positions {(~seen[example]).nonzero()[:, 0].tolist()} in any"
        " layer, not even they themselves: they look like padding. Give attention_mask=batch['attention_mask'], or"
        " a mask of ones where they are none."
    )


def direction_of(
    looks_ahead: Bool[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    seen: Int[Tensor, "batch pos"],
    said: AttentionDirection | None,
) -> AttentionDirection:
    """Whether positions look at later ones, of those that any looks at: "causal" or "bidirectional", or as said.

    Raises:
        LensplugError: If some do and some do not, or what was said is not so.
    """
    later = seen.flip(1).cumsum(dim=1).flip(1) - seen
    could = mask.bool() & (later > 0)
    if said == "causal" and bool(looks_ahead.any()):
        example, position = looks_ahead.nonzero()[0].tolist()
        raise LensplugError(
            f"attention_dir is 'causal', and position {position} of example {example} looks at later ones: give the"
            " attention_mask of the run where there is padding, else attention_dir='bidirectional'."
        )
    if said is not None:
        return said
    if not bool(looks_ahead.any()):
        return "causal"
    if bool(looks_ahead[could].all()):
        return "bidirectional"
    raise LensplugError(
        f"{int(looks_ahead.sum())} of {int(could.sum())} positions look at later ones, the others do not: neither"
        " causal nor bidirectional. A causal model's padding looks everywhere: give attention_mask=; for a"
        " prefix that sees all of itself, say attention_dir='bidirectional'."
    )
