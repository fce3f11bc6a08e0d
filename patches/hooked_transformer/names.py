"""HookedTransformer, for the patches that are for it; where it is gone, the names of what is for a bridge.

Not a patch but what the patches of a HookedTransformer import it from.
"""

from importlib.metadata import version

FOR_A_BRIDGE = {
    "AttentionRows": "BridgeAttentionRows",
    "ConfigFix": "bridge.core.build_language_bridge",
    "EmbeddingInput": "BridgeEmbeddingInput",
    "GatedMLPInPlace": "BridgeMLPInPlace",
}
"""Patch of a HookedTransformer -> what does the same for a TransformerBridge."""

try:
    from transformer_lens import HookedTransformer as HookedTransformer
    from transformer_lens import HookedTransformerConfig as HookedTransformerConfig
except ImportError as gone:
    raise ImportError(
        f"TransformerLens {version('transformer-lens')} has no HookedTransformer, and {', '.join(FOR_A_BRIDGE)} are for"
        f" one (pip install 'lensplug[hooked]' keeps TransformerLens at 3.9). For a TransformerBridge, lensplug.patches"
        f" has {', '.join(FOR_A_BRIDGE.values())}."
    ) from gone
