"""Patches that fill gaps in TransformerLens, one per file, each reversible and usable by itself.

`hooked_transformer/` and `bridge/` hold twins under equal names:

`core` makes a HookedTransformer (`ConfigFix`) or a bridge of the language core of a Hugging Face model in memory, and
leaves that model whole; `embedding_input` takes merged embeddings wherever tokens go; `attention_rows` gives
attention the speed of SDPA, and patterns of chosen rows only; `mlp_in_place` computes MLPs without copies;
`unwatched_blocks` runs blocks that no hook sees without their hook points.

For a bridge alone: `hook_names` gives its hooks HookedTransformer's names, one each; `padding` keeps padding from
attending; `key_value_cache` finds the cache when it generates; `resid_mid` lets an edit between attention and MLP
reach the stream; `deepstack` hooks features that are added between blocks, `block_terms` what layers write that no
table knows, and `routing` which experts a token takes; `stream_terms` has all of these terms in decompositions;
`unbridged` takes a bridge's components out of a Hugging Face model.

`both/`: `logit_rows` gives logits of chosen positions; `from_layer` begins runs at a layer; `checkpointed_blocks` lets
a backward pass keep the blocks' inputs only, and `mlp_by_positions` lets it go through MLPs a few positions at a time;
`logit_directions` makes `logit_attrs` sum to the logit without folding;
`placeholders` refuses tokens for an image or sound that is missing; `temporary_hooks` takes hooks off without a pass
over all of a model's hook points.

Importing this package changes nothing: a patch acts on one instance, when it is applied, until it is removed.

    with EmbeddingInput(model):
        logits, cache = model.run_with_cache(embeds, tokens=tokens, attention_mask=mask)
"""

from importlib import import_module
from typing import Any

PATCHES = {
    "AttentionRows": "lensplug.patches.hooked_transformer.attention_rows",
    "BridgeAttentionRows": "lensplug.patches.bridge.attention_rows",
    "BridgeCache": "lensplug.patches.bridge.key_value_cache",
    "BridgeDeepstack": "lensplug.patches.bridge.deepstack",
    "BridgeEmbeddingInput": "lensplug.patches.bridge.embedding_input",
    "BridgeMLPInPlace": "lensplug.patches.bridge.mlp_in_place",
    "BridgePadding": "lensplug.patches.bridge.padding",
    "BridgeResidMid": "lensplug.patches.bridge.resid_mid",
    "BridgeRouting": "lensplug.patches.bridge.routing",
    "BridgeUnwatchedBlocks": "lensplug.patches.bridge.unwatched_blocks",
    "CheckpointedBlocks": "lensplug.patches.both.checkpointed_blocks",
    "ConfigFix": "lensplug.patches.hooked_transformer.core",
    "EmbeddingInput": "lensplug.patches.hooked_transformer.embedding_input",
    "GatedMLPInPlace": "lensplug.patches.hooked_transformer.mlp_in_place",
    "HookNames": "lensplug.patches.bridge.hook_names",
    "LogitDirections": "lensplug.patches.both.logit_directions",
    "LogitRows": "lensplug.patches.both.logit_rows",
    "MLPByPositions": "lensplug.patches.both.mlp_by_positions",
    "PlaceholdersRefused": "lensplug.patches.both.placeholders",
    "UnwatchedBlocks": "lensplug.patches.hooked_transformer.unwatched_blocks",
}
"""Patch -> its module, imported when asked for: TransformerLens 4 has no HookedTransformer to import."""


def __getattr__(name: str) -> Any:
    """The patch of that name.

    Raises:
        ImportError: If it is for HookedTransformer, and there is none.
    """
    if name in PATCHES:
        return getattr(import_module(PATCHES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *PATCHES])
