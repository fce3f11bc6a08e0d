"""Gradients of one number, usually a token's logit, with respect to the core's activations.

Idea: the merged embeddings go in as a leaf that requires a gradient, every parameter is frozen for the length of
the call, and the activations that are kept are the very tensors the rest of the pass is computed from. One
backward pass then gives the gradient of each. Cache and gradients are both held under the names of the hooks, so
that nothing depends on the order in which a backward pass visits the layers (last first; a well-known
implementation of gradient-weighted rollout gives the last layer's gradients to the first).

When not to use it: a gradient says what an infinitely small change would do. Where a model is saturated (a
probability near 1) it is nearly zero although the activation matters; take the logit, not the probability.

The memory is that of a training step without the parameters' gradients: patterns and their gradients are
`head x pos x pos` in every layer. With `keep="cam"` it is that of one block and a head's share of the patterns: the
backward pass computes each block again, and makes patterns and gradients a few rows at a time, gated MLPs a few
positions at a time. With `keep="gradient_rollout"` it is that of one block, and the input of each.
It is reached through `lens.run_with_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensplug import engines, reductions
from lensplug.cache.lens_cache import LensCache
from lensplug.errors import LensplugError
from lensplug.inputs.logit_targets import Target, terms_of
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.patches.both.temporary_hooks import temporary_hooks
from lensplug.positions.indices import Position, watched_rows
from lensplug.reductions import KeepGradients
from lensplug.reductions.gradient_rollout_rows import refuse_twice
from lensplug.running.caching import NamesFilter, names_taken, predicate
from lensplug.validation.finite import all_finite

PATTERNS = "attn.hook_pattern"
"""What is kept by default: the hooks whose names end so."""
SCORES = "attn.hook_attn_scores"


def run_with_gradients(
    model: Any,
    engine: engines.EngineName,
    inputs: MultimodalInput,
    *,
    tokenizer: Any,
    target: Target,
    position: Position = -1,
    names_filter: NamesFilter = None,
    keep: KeepGradients = None,
) -> tuple[Float[Tensor, "batch pos d_vocab"], LensCache, LensCache]:
    """Logits, activations and gradients; see `MultimodalLens.run_with_gradients`.

    Raises:
        LensplugError: If the target is not one token for each example or no scalar with a gradient, no hook is
            kept, or a gradient is not finite.
    """
    chosen = reductions.chosen(keep, reductions.GRADIENTS_BY_NAME)
    refuse_twice(chosen)
    # Logits of thousands of positions, and their gradient, are gigabytes: only a function may want all of them.
    terms = None if callable(target) else terms_of(target, position, inputs, tokenizer, model.cfg.d_vocab_out)
    target_rows = None if terms is None else terms.rows
    reduced = [reduction.begin(inputs, model.cfg.n_layers, target_rows) for reduction in chosen]
    rows = terms.rows if reduced and terms is not None else None

    def scalar(logits: Tensor) -> Any:
        if terms is None:
            return cast("Callable[[Tensor], Tensor]", target)(logits)
        if rows is None:
            examples = torch.arange(len(logits), device=logits.device)[:, None]
            logits = logits[examples, terms.rows.to(logits.device).clone()]
        return terms.of(logits).sum()

    activations: dict[str, Tensor] = {}

    def keep_activation(value: Tensor, hook: Any) -> Tensor:
        if hook.name in activations:  # a block that is computed again
            return value
        if value.is_floating_point() and not value.requires_grad:  # another hook has put a constant in its place
            value = value.detach().requires_grad_()
        activations[hook.name] = value
        return value

    def each_gradient(layer: int, start: int, pattern: Tensor, gradient: Tensor) -> None:
        for accumulator in reduced:
            accumulator(layer, start, pattern, gradient)

    default = (lambda name: False) if reduced else (lambda name: name.endswith(PATTERNS))
    names = names_taken(model, predicate(default if names_filter is None else names_filter))
    if reduced and any(name.endswith((PATTERNS, SCORES)) for name in names):
        raise LensplugError("with keep, patterns and scores are not kept: leave them out of names_filter.")
    with ExitStack() as stack:
        for context in (torch.inference_mode(False), torch.enable_grad(), frozen(model)):
            stack.enter_context(context)
        if reduced:
            rows_shown = watched_rows(inputs.tokens)
            stack.enter_context(engines.attention_rows(engine, model, rows_shown, each_gradient=each_gradient))
            stack.enter_context(engines.checkpointed(model))
        if rows is not None:
            stack.enter_context(engines.logit_rows(model, rows.clone()))  # they may be of inference mode
        stack.enter_context(temporary_hooks(model, ((name, keep_activation) for name in names)))
        embeds = inputs.embeds.detach().clone().requires_grad_()
        logits = model(replace(inputs, embeds=embeds))
        if not activations and not reduced:
            raise LensplugError("names_filter matches no hook that fires in this run: see lens.model.hook_dict.")
        gradients = _gradients(_checked(scalar(logits)), activations, embeds)
    cache = LensCache.of({name: value.detach() for name, value in activations.items()}, model, inputs)
    for accumulator in reduced:
        cache.add(accumulator.named, {})
    return logits.detach(), cache, LensCache.of(gradients, model, inputs, weights=cache.weights)


def _checked(scalar: Any) -> Tensor:
    """What a target function returned, if a gradient can be taken of it."""
    received = f"a tensor of shape {list(scalar.shape)}" if isinstance(scalar, Tensor) else f"a {type(scalar).__name__}"
    if not isinstance(scalar, Tensor) or scalar.ndim or not scalar.is_floating_point():
        raise LensplugError(f"the target function returned {received}, expected one number: logits[..., token].sum().")
    if not scalar.requires_grad:
        raise LensplugError(
            "what the target function returned has no gradient: compute it from the logits it is given, without"
            " .item(), .detach(), argmax or torch.no_grad()."
        )
    return scalar


def _gradients(scalar: Tensor, activations: dict[str, Tensor], embeds: Tensor) -> dict[str, Tensor]:
    """The gradient with respect to each cached activation; zeros if the scalar does not depend on it."""
    floats = {name: value for name, value in activations.items() if value.is_floating_point()}
    # The embeddings' gradient passes through every layer: a score that overflowed is seen in it even where
    # TransformerLens turned its row of the pattern into zeros.
    gradient_list = torch.autograd.grad(scalar, [*floats.values(), embeds], allow_unused=True)
    gradients = {}
    for name, gradient in zip([*floats, "the embeddings"], gradient_list, strict=True):
        if gradient is not None and not all_finite(gradient):
            raise LensplugError(
                f"the gradient of {name} holds NaN or infinity (of a {str(embeds.dtype).removeprefix('torch.')} model):"
                " in fp16 attention scores and gradients can overflow (lens.check counts NaN); use bfloat16 or"
                " float32."
            )
        if name in floats:
            gradients[name] = torch.zeros_like(floats[name]) if gradient is None else gradient
    return gradients


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient: what a backward pass needs for theirs is then not kept in memory."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def thaw() -> None:
        for parameter in trainable:
            parameter.requires_grad_(True)

    try:
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            yield
        finally:
            thaw()
    finally:
        thaw()  # an interrupt may have come in the midst of the first
