"""BridgeCache: a bridge remembers its prompt while it generates."""

from __future__ import annotations

import torch
from lensplug.patches import BridgeCache
from lensplug.patches.bridge_core import build_language_bridge
from models import text_model, text_tokens


def test_without_the_patch_a_bridge_forgets_the_prompt():
    """The trap: other words, no error. When this fails, TransformerLens knows the new name and BridgeCache may go."""
    hf, tokens = text_model("qwen2"), text_tokens(24)
    bridge, options = build_language_bridge(hf.model, hf.lm_head, hf.config), {"max_new_tokens": 6, "do_sample": False}
    expected = hf.generate(tokens, **options)
    options |= {"stop_at_eos": False, "verbose": False}
    assert not torch.equal(bridge.generate(tokens, **options), expected)
    with BridgeCache(bridge):
        assert torch.equal(bridge.generate(tokens, **options), expected)
    assert not torch.equal(bridge.generate(tokens, **options), expected), "and is as it was before"
