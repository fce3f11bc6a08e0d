"""Any Hugging Face model's attentions as a cache, so that the analyses that read patterns read encoders too.

Idea: `outputs.attentions` of BERT, RoBERTa, ALBERT (an entry for each time its shared layer is run), ViT, a decoder,
or of one side of T5 and BART (`encoder_attentions`, `decoder_attentions`) is what TransformerLens calls
`blocks.N.attn.hook_pattern`. Under these names rollout, gradient rollout, received attention, heat maps and
CircuitsVis take it as it is. What is no square pattern of probabilities is refused.

    model.set_attn_implementation("eager")                               # other implementations return no attention
    outputs = model.eval()(**batch, output_attentions=True)
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in batch["input_ids"]]
    cache = lensplug.cache_from_attentions(
        outputs.attentions, tokens=tokens, attention_mask=batch["attention_mask"]
    )
    analysis.attention_rollout(cache, rows=0)                                                       # of [CLS]
    grads = lensplug.grads_from_attentions(outputs.attentions, target=outputs.logits[0, 1])
    analysis.gradient_rollout(cache, grads, rows=0)

When not to use it: for a model that `lensplug.wrap` takes, whose cache has residuals and values too, and which need
not hold every pattern. Cross attention mixes no positions with each other: a rollout of it means nothing. A window
of local attention (ModernBERT) is not known to the cache: `head_specialization` counts every position as allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformer_lens import ActivationCache

from lensplug.attentions.checks import (
    AttentionDirection,
    check_rows,
    check_seen,
    check_weights,
    direction_of,
    of_layers,
    scaled,
)
from lensplug.cache.lens_cache import LensCache
from lensplug.cache.reading import attended, texts_of
from lensplug.errors import LensplugError
from lensplug.validation.arguments import checked, described
from lensplug.validation.masks import Mask


@dataclass(frozen=True)
class Config:
    """The part of a model's configuration that analyses read, under TransformerLens's names."""

    n_layers: int
    n_heads: int
    attention_dir: AttentionDirection
    model_name: str
    dtype: torch.dtype


@dataclass(frozen=True)
class AttentionsOnly:
    """A stand-in for a cache's model, with a configuration and nothing else."""

    cfg: Config


@checked
def cache_from_attentions(
    attentions: Any,
    *,
    tokens: Any = None,
    attention_mask: Mask | None = None,
    normalize: bool = False,
    attention_dir: AttentionDirection | None = None,
    model_name: str = "unknown",
) -> LensCache:
    """The self attention of every layer as an ActivationCache, under TransformerLens's names.

    The patterns share memory with what was given, without its graph. The cache has `attention_mask` and `str_tokens`,
    which analyses read as they do those of a lens.

    Args:
        attentions: `outputs.attentions` (or `encoder_attentions`, `decoder_attentions`): for each layer
            `[batch head query key]`, each row of which sums to 1.
        tokens: The text of each position, `tokenizer.convert_ids_to_tokens(ids)`, for each example; images name
            positions by it.
        attention_mask: The mask that the model was run with, 1 = not padding; needed where there is padding.
        normalize: Scale every row to sum 1, where they were rounded or cut.
        attention_dir: "causal" or "bidirectional"; None: as the attention shows.
        model_name: For the provenance of results.

    Raises:
        LensplugError: If an attention is missing (SDPA returns none), not square, not finite, no probability, of
            another shape than the others, or does not fit the mask or the tokens.
    """
    layers = of_layers(attentions)
    shape = (layers[0].shape[0], layers[0].shape[-1])
    mask = attended(None, shape, attention_mask, layers[0].device)
    texts = None if tokens is None else texts_of(None, _each(tokens), shape, "tokens")
    tensors, looks_ahead, receives_attention = {}, torch.zeros_like(mask).bool(), torch.zeros_like(mask).bool()
    for layer, attention in enumerate(layers):
        pattern = attention.detach()
        check_weights(pattern, layer)
        pattern = scaled(pattern, layer, mask) if normalize else pattern
        check_rows(pattern, layer, mask)
        highest = pattern.amax(dim=1).to(mask.device) * mask[:, :, None]  # [batch query key], padding does not look
        looks_ahead |= ((highest * mask[:, None]).triu(1) > 0).any(dim=-1)
        receives_attention |= (highest > 0).any(dim=1)
        tensors[f"blocks.{layer}.attn.hook_pattern"] = pattern
    if attention_mask is None:
        check_seen(receives_attention)
    direction = direction_of(looks_ahead, mask, mask * receives_attention, attention_dir)
    config = Config(len(layers), layers[0].shape[1], direction, model_name, layers[0].dtype)
    return LensCache(tensors, AttentionsOnly(config), attention_mask=mask, str_tokens=texts)


@checked
def grads_from_attentions(attentions: Any, *, target: Any = None) -> ActivationCache:
    """The gradients of one number with respect to the attention of every layer, for `analysis.gradient_rollout`.

    Args:
        attentions: The very tensors of `outputs.attentions`, of a run that recorded its graph (no `torch.no_grad()`).
        target: The number, such as `outputs.logits[0, label]` (of a batch the sum of its examples' logits); another
            target may follow, the graph is kept. None: what a backward pass left in tensors on which
            `retain_grad()` was called before it; two backward passes add up there.

    Raises:
        LensplugError: If there is no graph or no gradient, or the target is no single number or depends on none of
            them.
    """
    layers = of_layers(attentions)
    gradients = _retained(layers) if target is None else _differentiated(target, layers)
    tensors = {f"blocks.{index}.attn.hook_pattern": gradient for index, gradient in enumerate(gradients)}
    return ActivationCache(tensors, None)


def _retained(layers: list[Tensor]) -> list[Tensor]:
    """Gradients retained by a backward pass."""
    # Asked of a tensor that keeps none, .grad warns.
    retained = [layer.grad if layer.retains_grad or layer.is_leaf else None for layer in layers]
    missing = [index for index, gradient in enumerate(retained) if gradient is None]
    if missing:
        raise LensplugError(
            f"the attentions of the layers {missing} hold no gradient: give target=outputs.logits[0, label], or call"
            " retain_grad() on each of outputs.attentions before logits[0, label].backward()."
        )
    return [gradient for gradient in retained if gradient is not None]


def _differentiated(target: Any, layers: list[Tensor]) -> list[Tensor]:
    """The gradient for each layer, zeros for one that the target does not depend on."""
    if not isinstance(target, Tensor) or target.ndim or not target.is_floating_point():
        received = f"a tensor of shape {list(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise LensplugError(f"target is {received}, expected one number with its graph: outputs.logits[0, label].")
    if not target.requires_grad or not all(layer.requires_grad for layer in layers):
        raise LensplugError(
            "target or attentions have no graph: run the model without torch.no_grad(), with parameters that require"
            " gradients, and give outputs.attentions itself, not a detached copy."
        )
    gradients = torch.autograd.grad(target, layers, retain_graph=True, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise LensplugError("target depends on none of these attentions: give both of one run of the model.")
    return [
        torch.zeros_like(layer_attention) if gradient_or_none is None else gradient_or_none
        for layer_attention, gradient_or_none in zip(layers, gradients, strict=True)
    ]


def _each(tokens: Any) -> Sequence[Sequence[Any]]:
    """The texts of each example; for one example, a flat list is accepted."""
    rows: Any = [tokens] if isinstance(tokens, Sequence) and len(tokens) and isinstance(tokens[0], str) else tokens
    if isinstance(tokens, str) or not isinstance(rows, Sequence) or not all(isinstance(row, Sequence) for row in rows):
        raise LensplugError(f"tokens is {described(tokens)}, expected the text of each position, for each example.")
    given: Sequence[Sequence[Any]] = rows
    return given
