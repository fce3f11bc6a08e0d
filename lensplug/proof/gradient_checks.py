"""Gradients with respect to the embeddings and to every pattern, against Hugging Face's own."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lensplug.patches.core_parts import embedding_multiplier
from lensplug.proof.measures import NUMBERS, Tally, apart, explained
from lensplug.proof.pair import Pair, noise, rounded_otherwise
from lensplug.proof.prompts import Prompt
from lensplug.proof.report import Check

Gradients = tuple[list[Tensor], dict[int, Tensor | None]]
"""With respect to the embeddings, and to the pattern of each layer; None where none reaches it."""


def checks(pair: Pair, prompt: Prompt, tolerance: float) -> list[Check]:
    """Of a sum of all logits, weighted by chance."""
    with torch.enable_grad():
        found, found_patterns = _wrapped(pair, prompt)
        expected, expected_patterns = _reference(pair, prompt)

    @cache
    def rounded() -> Gradients:
        with torch.enable_grad():
            return _reference(pair, prompt, rounded=True)

    def of_patterns() -> float:
        effects = [
            _of_seen(rounded()[1][layer], gradient)
            for layer, gradient in expected_patterns.items()
            if gradient is not None
        ]
        return explained(max(effects, default=0.0))

    embeds = Tally("gradients of the embeddings", tolerance, lambda: explained(apart(rounded()[0][0], expected[0])))
    embeds.add(apart(found[0], expected[0]), "the embeddings")
    patterns = Tally("gradients of the patterns", tolerance, of_patterns)
    for layer, gradient in sorted(found_patterns.items()):
        hf = expected_patterns.get(layer)
        if gradient is None:
            patterns.add(float("inf"), f"layer {layer}, which no gradient reaches")
        elif hf is not None:
            patterns.add(_of_seen(gradient, hf), f"layer {layer}")
    return [embeds.check(), patterns.check("no layer has patterns in both")]


def _of_seen(found: Tensor | None, expected: Tensor) -> float:
    """How far gradients are apart, of keys that are seen.

    Of others a gradient means nothing: one of the models masks before the pattern, one behind.
    """
    if found is None:
        return float("inf")
    length = expected.shape[-1]
    seen = torch.ones(length, length, dtype=torch.bool, device=expected.device).tril()
    return apart((found * seen).flatten(1), (expected * seen).flatten(1))


def _wrapped(pair: Pair, prompt: Prompt) -> Gradients:
    leaf = _leaf(pair, prompt)
    patterns: dict[int, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        patterns[hook.layer()] = value

    hooks: list[Any] = [(name, keep) for name in pair.hook_names if name.endswith("attn.hook_pattern")]
    scale = embedding_multiplier(pair.core.decoder)  # hook_embed is what enters the stream
    logits = pair.wrapped(prompt, [("hook_embed", lambda value, hook: leaf * scale), *hooks])
    return _gradients(logits, leaf, patterns)


def _reference(pair: Pair, prompt: Prompt, *, rounded: bool = False) -> Gradients:
    leaf = _leaf(pair, prompt)
    patterns: dict[int, Tensor] = {}
    length = prompt.tokens.shape[1]

    def embed(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return (), {**kwargs, "input_ids": None, "inputs_embeds": rounded_otherwise(leaf) if rounded else leaf}

    def keep(layer: int, output: Any) -> None:
        for value in output[1:] if isinstance(output, tuple) else ():
            if isinstance(value, Tensor) and value.ndim == 4 and value.shape[-2:] == (length, length):
                patterns[layer] = value

    handles = [pair.core.decoder.register_forward_pre_hook(embed, with_kwargs=True)]
    for layer, module in enumerate(pair.layers):
        for part in module.children():
            handles.append(part.register_forward_hook(lambda _, __, output, layer=layer: keep(layer, output)))
    return _gradients(pair.reference(prompt, handles), leaf, patterns)


def _leaf(pair: Pair, prompt: Prompt) -> Tensor:
    weights = next(pair.layers[0].parameters())  # float32 within `full_precision`
    return prompt.embeds.detach().to(weights.dtype).clone().requires_grad_()


def _gradients(logits: Tensor, leaf: Tensor, patterns: dict[int, Tensor]) -> Gradients:
    with_gradient = {layer: value for layer, value in patterns.items() if value.requires_grad}
    # A logit that a model forbids is no number: it has no gradient in one of the models, and a meaningless one in the
    # other.
    weights = noise(logits.float()) * (logits.detach() > -NUMBERS)
    total = (logits.float() * weights).sum()
    gradients = torch.autograd.grad(total, [leaf, *with_gradient.values()], allow_unused=True)
    found: dict[int, Tensor | None] = dict.fromkeys(patterns)
    found |= dict(zip(with_gradient, gradients[1:], strict=True))
    reached = gradients[0]
    return [torch.full_like(leaf, torch.nan) if reached is None else reached], found
