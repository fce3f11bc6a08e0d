"""Which positions a model lets each position see: not padding, not later in a causal one, not outside a window.

A weight of zero does not tell: in half precision small weights round to zero, and a row may be zero where it was seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import looks_ahead_within
from lensplug.positions.modality_map import ModalityMap


def visible(
    cache: ActivationCache,
    layer: int,
    mask: Int[Tensor, "batch pos"],
    attention: Float[Tensor, "batch query key"],
    *,
    modality: ModalityMap | None = None,
) -> Bool[Tensor, "batch query key"]:
    """For each query of a layer the keys that it may see; padding sees nothing.

    Args:
        cache: Its model's configuration says direction and window.
        layer: Counted from 0.
        mask: 1 where there is no padding.
        attention: What the layer gave: a weight above zero was seen, whatever the configuration says.
        modality: For a model that lets an image see itself whole (Gemma 3), or a prompt (PaliGemma).
    """
    cfg: Any = getattr(cache.model, "cfg", None)
    real = mask.to(attention.device).bool()
    positions = torch.arange(mask.shape[1], device=real.device)
    allowed = torch.ones(len(positions), len(positions), dtype=torch.bool, device=real.device)
    if getattr(cfg, "attention_dir", "causal") == "causal":
        allowed = positions <= positions[:, None]
    if getattr(cfg, "use_local_attn", False) and cfg.attn_types[layer] == "local":
        allowed = allowed & (positions > positions[:, None] - cfg.window_size)
    is_visible = (allowed | (attention > 0)) & real[:, None] & real[:, :, None]
    if modality is not None:
        for example, start, stop in seen_whole(cache, modality):
            is_visible[example, start:stop, start:stop] = True
    return is_visible


def seen_whole(cache: ActivationCache, modality: ModalityMap) -> Iterator[tuple[int, int, int]]:
    """Where positions see each other, later ones too: example, first position, and the one behind the last.

    In Gemma 3 an image; in PaliGemma the prompt. Windows do not matter within.
    """
    within = looks_ahead_within(cache)
    if within == "prompt":
        is_prompt = modality.attention_mask.bool() & ~modality.mask("generated")
        for example, row in enumerate(is_prompt):
            places = row.nonzero()[:, 0]
            yield example, int(places[0]), int(places[-1]) + 1
        return
    for span in modality.spans if within is not None else ():
        if span.modality == within:
            yield span.example, span.start, span.stop
