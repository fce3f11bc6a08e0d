"""TransformerLens 3.x and 4.x: the core as a TransformerBridge around copies of the modules that share the weights."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from lensplug.hf.language_core import LanguageCore
from lensplug.patches.later_positions import LaterPositions
from lensplug.patches.patch import Patch
from lensplug.patches.rows_of_blocks import EachBlock, EachGradient
from lensplug.validation.masks import Mask


def attention_rows(
    model: Any,
    rows: Int[Tensor, "batch row"],
    *,
    hidden: Mask | None = None,
    each_block: EachBlock | None = None,
    each_gradient: EachGradient | None = None,
) -> Patch:
    """A patch under which attention runs at the speed of SDPA, with scores and patterns at these query rows only."""
    from lensplug.patches.bridge.attention_rows import BridgeAttentionRows

    return BridgeAttentionRows(model, rows, hidden=hidden, each_block=each_block, each_gradient=each_gradient)


def decoding(model: Any, prompt: Any) -> Any:
    """The decoding steps of one answer, with a key-value cache."""
    from lensplug.patches.both.decoding import BridgeDecoding

    return BridgeDecoding(model, prompt)


def unwatched_blocks(model: Any, later: LaterPositions | None = None) -> Patch:
    """A patch under which blocks without hooks run without their hook points."""
    from lensplug.patches.bridge.unwatched_blocks import BridgeUnwatchedBlocks

    return BridgeUnwatchedBlocks(model, later)


def build(core: LanguageCore, *, tokenizer: Any = None, process_weights: bool = False) -> Any:
    """A TransformerBridge of the core, with the patches that make it a multimodal model's.

    Raises:
        LensplugError: If the core is one that a bridge is not known to compute exactly.
    """
    from lensplug.patches.both.logit_directions import LogitDirections
    from lensplug.patches.both.placeholders import PlaceholdersRefused
    from lensplug.patches.bridge.block_terms import BlockTerms
    from lensplug.patches.bridge.core import build_language_bridge, in_table
    from lensplug.patches.bridge.deepstack import BridgeDeepstack
    from lensplug.patches.bridge.embedding_input import BridgeEmbeddingInput
    from lensplug.patches.bridge.hook_names import HookNames
    from lensplug.patches.bridge.key_value_cache import BridgeCache
    from lensplug.patches.bridge.mlp_in_place import BridgeMLPInPlace
    from lensplug.patches.bridge.padding import BridgePadding
    from lensplug.patches.bridge.resid_mid import BridgeResidMid
    from lensplug.patches.bridge.routing import BridgeRouting

    model = build_language_bridge(core, tokenizer=tokenizer, process_weights=process_weights, model_name=core.name)
    if in_table(core):
        BridgeResidMid(model).apply()
        BridgeDeepstack(model, core.n_deepstack).apply()
    else:
        BlockTerms(model, model.tried.layers).apply()
        BridgeDeepstack(model, core.n_deepstack if "deepstack" in core.beside else 0).apply()
    for patch in (BridgeRouting, HookNames, BridgeCache, BridgePadding, LogitDirections):
        patch(model).apply()
    if in_table(core):
        BridgeMLPInPlace(model).apply()
    if "attention_mask" in core.beside:
        # Of the masks that its model gives it: `cache.reading` reads it.
        model.cfg.looks_ahead_within = "prompt" if core.sees_whole_prompt else "image"
    BridgeEmbeddingInput(model, beside=core.beside).apply()
    PlaceholdersRefused(model, core.placeholder_ids).apply()
    return model
