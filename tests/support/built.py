"""A TransformerLens model of a plain language model, in each way that the installed TransformerLens has."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any, cast

import pytest

from lensplug.engines import EngineName
from lensplug.patches.core_parts import CoreParts

HOOKED = int(version("transformer-lens").split(".")[0]) < 4
ONLY_HOOKED = "HookedTransformer ends with TransformerLens 3.9"
ONE_ENGINE = cast("EngineName | None", os.environ.get("LENSPLUG_ENGINE"))
"""What the tests run with wherever they do not ask for an engine; without it, what "auto" takes."""
ENGINES = [
    pytest.param("hooked_transformer", marks=pytest.mark.skipif(not HOOKED, reason=ONLY_HOOKED)),
    "bridge",
]
"""For `pytest.mark.parametrize("engine", ENGINES)`."""


def core_parts(hf: Any) -> CoreParts:
    """The language core of a Hugging Face model."""
    return CoreParts(hf.get_decoder(), hf.get_output_embeddings(), hf.config.get_text_config(decoder=True))


def built(engine: str, hf: Any, **options: Any) -> Any:
    """The model without the patches that take embeddings, under HookedTransformer's names."""
    core = core_parts(hf)
    if engine == "hooked_transformer":
        from lensplug.patches.hooked_transformer.core import build_hooked_transformer

        return build_hooked_transformer(core, **options)
    from lensplug.patches import BridgeCache, BridgePadding, BridgeResidMid, HookNames
    from lensplug.patches.bridge.core import build_language_bridge

    model = build_language_bridge(core, **options)
    for patch in (BridgeResidMid, HookNames, BridgeCache, BridgePadding):
        patch(model).apply()
    return model


def embedding_input(engine: str) -> Any:
    """The patch that takes embeddings."""
    from lensplug import patches

    return patches.EmbeddingInput if engine == "hooked_transformer" else patches.BridgeEmbeddingInput


def attention_rows(engine: str) -> Any:
    """The patch that makes rows of patterns."""
    from lensplug import patches

    return patches.AttentionRows if engine == "hooked_transformer" else patches.BridgeAttentionRows


def mlp_in_place(engine: str) -> Any:
    """The patch that makes gated MLPs in place."""
    from lensplug import patches

    return patches.GatedMLPInPlace if engine == "hooked_transformer" else patches.BridgeMLPInPlace


def unwatched_blocks(engine: str) -> Any:
    """The patch that runs blocks that no hook sees without their hook points."""
    from lensplug import patches

    return patches.UnwatchedBlocks if engine == "hooked_transformer" else patches.BridgeUnwatchedBlocks
