"""TransformerLens 3.x: the core as a HookedTransformer that shares the Hugging Face weights."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from jaxtyping import Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.hf.language_core import WHY_BESIDE, LanguageCore
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
    from lensplug.patches.hooked_transformer.attention_rows import AttentionRows

    return AttentionRows(model, rows, hidden=hidden, each_block=each_block, each_gradient=each_gradient)


def decoding(model: Any, prompt: Any) -> Any:
    """The decoding steps of one answer, with a key-value cache."""
    from lensplug.patches.both.decoding import HookedDecoding

    return HookedDecoding(model, prompt)


def unwatched_blocks(model: Any, later: LaterPositions | None = None) -> Patch:
    """A patch under which blocks without hooks run without their hook points."""
    from lensplug.patches.hooked_transformer.unwatched_blocks import UnwatchedBlocks

    return UnwatchedBlocks(model, later)


def build(core: LanguageCore, *, tokenizer: Any = None, process_weights: bool = False) -> Any:
    """A HookedTransformer of the core, with the patches that make it a multimodal model's.

    Raises:
        LensplugError: If TransformerLens has no HookedTransformer any more, or the core is one that it
            does not compute exactly.
    """
    installed = version("transformer-lens")
    if int(installed.split(".")[0]) >= 4:
        raise LensplugError(
            f"TransformerLens {installed} has no HookedTransformer (3.9.0 is the last): pip install 'lensplug[hooked]',"
            " or engine='bridge'."
        )
    if core.beside:
        name, reason = core.text_config.model_type, WHY_BESIDE[core.beside[-1]]
        raise LensplugError(f"the core is {name}, which cannot be a HookedTransformer: {reason}. Use engine='bridge'.")
    from lensplug.patches.both.logit_directions import LogitDirections
    from lensplug.patches.both.placeholders import PlaceholdersRefused
    from lensplug.patches.bridge.own_layers import refuse_own_layers
    from lensplug.patches.hooked_transformer.core import build_hooked_transformer
    from lensplug.patches.hooked_transformer.embedding_input import EmbeddingInput
    from lensplug.patches.hooked_transformer.mlp_in_place import GatedMLPInPlace
    from lensplug.patches.hooked_transformer.unseen_keys import KnockedOutScores

    refuse_own_layers(
        core,
        "a HookedTransformer multiplies with plain matrices of its own: use engine='bridge', or load the model without"
        " quantisation and device_map, and merge adapters with model.merge_and_unload()",
    )
    model = build_hooked_transformer(core, tokenizer=tokenizer, process_weights=process_weights, model_name=core.name)
    for patch in (EmbeddingInput, GatedMLPInPlace, LogitDirections, KnockedOutScores):
        patch(model).apply()
    PlaceholdersRefused(model, core.placeholder_ids).apply()
    return model
