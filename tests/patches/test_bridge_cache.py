"""BridgeCache: a bridge remembers its prompt while it generates."""

from __future__ import annotations

from inspect import signature

import torch
from support.built import core_parts
from support.models import text_model, text_tokens

from lensplug.patches import BridgeCache, BridgeEmbeddingInput
from lensplug.patches.bridge.core import build_language_bridge


def test_without_the_patch_a_bridge_forgets_the_prompt():
    """The trap: other words, no error. When this fails, TransformerLens knows the new name and BridgeCache may go.

    With an older transformers, which has the old name, there is no trap.
    """
    hf, tokens = text_model("qwen2"), text_tokens(24)
    bridge, options = build_language_bridge(core_parts(hf)), {"max_new_tokens": 6, "do_sample": False}
    expected = hf.generate(tokens, **options)
    options |= {"stop_at_eos": False, "verbose": False}
    renamed = "cache" in signature(type(hf.model.layers[0].self_attn).forward).parameters
    assert torch.equal(bridge.generate(tokens, **options), expected) != renamed
    with BridgeCache(bridge):
        assert torch.equal(bridge.generate(tokens, **options), expected)
    assert torch.equal(bridge.generate(tokens, **options), expected) != renamed, "it is as it was before"


def test_embeddings_alone_generate_with_it():
    """`BridgeEmbeddingInput` brings it along: nobody means to forget the prompt."""
    hf, tokens = text_model("qwen2"), text_tokens(24)
    bridge = build_language_bridge(core_parts(hf))
    expected = hf.generate(tokens, max_new_tokens=6, do_sample=False)[:, 24:]
    update = bridge.blocks[0].attn._update_kv_cache
    with BridgeEmbeddingInput(bridge):
        embeds = hf.model.embed_tokens(tokens).detach()
        new = bridge.generate(embeds, max_new_tokens=6, do_sample=False, stop_at_eos=False, verbose=False)
    assert torch.equal(new, expected) and bridge.blocks[0].attn._update_kv_cache == update
