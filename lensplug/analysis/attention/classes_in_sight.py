"""Which positions make up each class (a modality, or the sink), and which of them a query sees, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from lensplug.analysis.attention.found_sinks import Sinks
from lensplug.analysis.attention.head_readings import CLASSES, SINK
from lensplug.analysis.attention.left_out import found_or_given
from lensplug.analysis.attention.visible_positions import seen_whole
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import n_layers, unseen_by
from lensplug.errors import LensplugError
from lensplug.positions.modality_map import ModalityMap
from lensplug.reductions.modality_mass import PARTS, VIEWS, part_numbers

SinkChoice = Literal["first", "special"] | Sinks | Sequence[Any] | np.ndarray | Shaped[Tensor, "*axes"] | None
"""Which positions are a class of their own: by name, as `analysis.sinks` found them, positions, or a mask."""
EVERY = (*CLASSES, *VIEWS)
"""Whatever has readings: the classes, and the views of images."""
SINKS = {"first": "the first position", "special": "the first position and the special tokens"}


def sink_positions(
    sinks: Any, mask: Int[Tensor, "batch pos"], exclude_sink: bool
) -> tuple[Bool[Tensor, "batch pos"] | None, str]:
    """The positions passed as sinks, if any; and a description of what counts as a sink.

    Raises:
        LensplugError: If it cannot be a choice of sinks.
    """
    if sinks is None:
        if exclude_sink:
            raise LensplugError("exclude_sink leaves the sinks out, and sinks is None: say which, sinks='first'.")
        return None, "no sink apart"
    end = "left out" if exclude_sink else "are a class of their own"
    if isinstance(sinks, str) and sinks in SINKS:
        return None, f"sinks ({SINKS[sinks]}) {end}"
    found, words = found_or_given(sinks, mask)
    return found, f"sinks ({words}) {end}"


def parts_of_classes(modality: ModalityMap, sinks: SinkChoice) -> Bool[Tensor, "example every part"]:
    """Which parts make up each of `EVERY`, in each example."""
    every = _parts_of_every(isinstance(sinks, str) and sinks == "special")
    membership = every.expand(len(modality.labels), -1, -1)
    if sinks is None:  # the first position counts with what it is
        first = modality.attention_mask.argmax(dim=1, keepdim=True)
        membership = membership.clone()
        membership[:, :, 0] = every[:, part_numbers(modality).gather(1, first)[:, 0].cpu()].T
    return membership


@lru_cache(maxsize=2)
def _parts_of_every(special: bool) -> Bool[Tensor, "every part"]:
    """The same, with special tokens among the sinks or not, for all examples; not to be written into."""
    part_names = {name: {name} for name in PARTS[2:]}
    part_names |= {
        "text": {"text"} if special else {"text", "special"},
        "image": {"image", *VIEWS},
        SINK: {"first", "special"} if special else {"first"},
    }
    return torch.tensor([[part in part_names.get(name, ()) for part in PARTS] for name in EVERY])


def seen(
    cache: ActivationCache, mask: Int[Tensor, "batch pos"], index: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch pos"]:
    """The key positions that the model lets each query see: not padding, and not later."""
    cfg: Any = getattr(cache.model, "cfg", None)
    if getattr(cfg, "attention_dir", "causal") != "causal":
        return mask.bool()
    return mask.bool() & (torch.arange(mask.shape[1], device=mask.device) <= index[:, None])


def seen_ahead(
    cache: ActivationCache, modality: ModalityMap, index: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch pos"]:
    """The positions of the query's own image, where a model lets an image see itself whole (Gemma 3); or prompt."""
    ahead = torch.zeros_like(modality.attention_mask, dtype=torch.bool)
    for example, start, stop in seen_whole(cache, modality):
        if start <= int(index[example]) < stop:
            ahead[example, start:stop] = True
    return ahead


def allowed_positions(
    cache: ActivationCache,
    mask: Int[Tensor, "batch pos"],
    index: Int[Tensor, " batch"],
    ahead: Bool[Tensor, "batch pos"],
) -> Bool[Tensor, "batch layer pos"]:
    """The key positions that each layer lets each query see, in any head if a knockout was of some heads.

    Args:
        cache: Of the run.
        mask: 1 where there is no padding.
        index: The query of each example.
        ahead: What it sees of later positions (`seen_ahead`).
    """
    cfg: Any = getattr(cache.model, "cfg", None)
    allowed = seen(cache, mask, index)[:, None].expand(-1, n_layers(cache), -1)
    if getattr(cfg, "use_local_attn", False):
        near = torch.arange(mask.shape[1], device=mask.device) > index[:, None] - cfg.window_size
        everywhere = torch.tensor([kind != "local" for kind in cfg.attn_types], device=mask.device)
        allowed = allowed & (near[:, None] | everywhere[:, None])
    allowed = allowed | ahead[:, None]
    for layer, by_head in unseen_by(cache, index, mask.shape[1]).items():
        allowed[:, layer] &= ~by_head.all(dim=1)
    return allowed


def heads_see_differently(
    cache: ActivationCache, mask: Int[Tensor, "batch pos"], index: Int[Tensor, " batch"]
) -> list[int]:
    """The layers in which a knockout kept some heads of a query, and not others, from a key before it."""
    sees, hidden = seen(cache, mask, index), unseen_by(cache, index, mask.shape[1])
    return [layer for layer, each in hidden.items() if bool(((each.any(dim=1) & ~each.all(dim=1)) & sees).any())]
