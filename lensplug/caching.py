"""Running a core and keeping what an analysis reads, and nothing else: rows of patterns, some residuals, some logits.

`MultimodalLens.run_with_cache` is the way here. TransformerLens's own cache keeps whole activations; of a prompt with
an image most of them are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache

from lensplug import engines, reductions
from lensplug.errors import LensplugError
from lensplug.inputs import MultimodalInput
from lensplug.positions import Positions, resolve_positions
from lensplug.reductions import Keep

RESIDUALS = ("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post")
"""Hooks of the residual stream: `residual_positions` are kept of them."""

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
Rows = Int[Tensor, "batch row"] | None


def run_with_cache(
    model: Any,
    engine: str,
    inputs: MultimodalInput,
    *,
    names_filter: NamesFilter,
    keep: Keep,
    query_positions: Positions | None,
    residual_positions: Positions | None,
    logit_positions: Positions | None,
    **kwargs: Any,
) -> tuple[Float[Tensor, ...] | None, ActivationCache]:
    """Logits and cache, without gradients; see `MultimodalLens.run_with_cache`.

    Raises:
        LensplugError: If a position is out of range, or options do not go together.
    """
    kept = [one.begin(inputs, model.cfg.n_layers, model.cfg.n_heads) for one in reductions.chosen(keep)]
    rows = _rows([] if kept and query_positions is None else query_positions, inputs, "query_positions")
    residual_rows = _rows(residual_positions, inputs, "residual_positions")
    wanted = _rows(logit_positions, inputs, "logit_positions")
    if wanted is not None and kwargs.get("return_type", "logits") not in ("logits", None):
        raise LensplugError("a loss needs the logits of every position: leave logit_positions out.")

    def each_block(layer: int, start: int, pattern: Float[Tensor, "batch head row key"]) -> None:
        for one in kept:
            one(layer, start, pattern)

    with ExitStack() as stack, torch.no_grad():
        if rows is not None:
            stack.enter_context(engines.attention_rows(engine, model, rows, each_block=each_block if kept else None))
        if wanted is not None:
            stack.enter_context(engines.logit_rows(engine, model, wanted))
        if residual_rows is None:
            logits, cache = model.run_with_cache(inputs, names_filter=names_filter, **kwargs)
        else:
            logits, cache = _keeping(model, inputs, names_filter, residual_rows, **kwargs)
    device = kwargs.get("device")
    for one in kept:
        cache.cache_dict |= {name: value if device is None else value.to(device) for name, value in one.named.items()}
        for name, value in one.noted.items():
            setattr(cache, name, value)
    cache.attention_mask = inputs.attention_mask  # analyses count positions from the last that is not padding
    cache.query_positions, cache.residual_positions = rows, residual_rows
    return logits, cache


def _rows(positions: Positions | None, inputs: MultimodalInput, name: str) -> Rows:
    if positions is None:
        return None
    if isinstance(positions, Sequence) and not positions:
        return inputs.tokens.new_empty(len(inputs), 0)
    return resolve_positions(positions, inputs.attention_mask, name=name)


def _keeping(
    model: Any,
    inputs: MultimodalInput,
    names_filter: NamesFilter,
    kept: Int[Tensor, "batch row"],
    *,
    device: Any = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, ...] | None, ActivationCache]:
    """TransformerLens's cache, but of the residual stream only the chosen positions, cut out as it runs."""
    if unknown := set(kwargs) - {"return_type"}:
        raise LensplugError(f"with residual_positions, {', '.join(sorted(unknown))} cannot be given.")
    wanted = predicate(names_filter)
    kept_here: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        activation = activation.detach()
        if hook.name.endswith(RESIDUALS):
            rows = kept.to(activation.device)[:, :, None].expand(-1, -1, activation.shape[-1])
            activation = activation.gather(1, rows)
        kept_here[hook.name] = activation if device is None else activation.to(device)

    logits = model.run_with_hooks(inputs, fwd_hooks=[(wanted, keep)], **kwargs)
    return logits, ActivationCache(kept_here, model)


def predicate(names_filter: NamesFilter) -> Callable[[str], bool]:
    """What TransformerLens calls a names_filter, as a function of the name; None keeps everything."""
    if names_filter is None:
        return lambda name: True
    if callable(names_filter):
        return names_filter
    names = {names_filter} if isinstance(names_filter, str) else set(names_filter)
    return lambda name: name in names
