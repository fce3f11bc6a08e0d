"""An edit of hook_resid_mid acts on the stream, as in HookedTransformer; before = after."""

from __future__ import annotations

import pytest
import torch
from support.beside import gemma3
from support.built import built, core_parts
from support.models import largest_difference, reference_logits, snapshot, text_model, text_tokens

from lensplug.patches import BridgeResidMid
from lensplug.patches.bridge.core import build_language_bridge


def by_hand(model, tokens, layer, direction):
    """Hugging Face's own layers, the direction added between attention and MLP: to what the norm before the MLP gets
    and to what the layer returns."""
    chosen = model.get_decoder().layers[layer]
    norm = getattr(chosen, "pre_feedforward_layernorm", chosen.post_attention_layernorm)
    handles = [
        norm.register_forward_pre_hook(lambda _, args: (args[0] + direction,)),
        chosen.register_forward_hook(lambda _, __, output: output + direction),
    ]
    try:
        return reference_logits(model, {"input_ids": tokens})
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral-window", "qwen3", "gemma3"])
def test_an_edit_reaches_the_stream(name):
    model = gemma3() if name == "gemma3" else text_model(name)
    tokens = text_tokens(12, 2)
    decoder = model.get_decoder()
    direction = torch.randn(decoder.embed_tokens.weight.shape[1], generator=torch.Generator().manual_seed(1)) * 3
    if name == "gemma3":
        bridge = build_language_bridge(core_parts(model))
        BridgeResidMid(bridge).apply()
        tokens = tokens[:1, :5]  # within its window, without images
    else:
        bridge = built("bridge", model)
    expected = by_hand(model, tokens, 1, direction)
    add = lambda x, hook: x + direction  # noqa: E731
    with torch.no_grad():
        if name == "gemma3":
            handle = bridge.blocks[1].hook_resid_mid.register_forward_hook(lambda _, __, x: x + direction)
            found, plain = bridge(tokens), None
            handle.remove()
            plain = bridge(tokens)
        else:
            found = bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_mid", add)])
            plain = bridge(tokens)
    assert largest_difference(found, expected) < 1e-4 * float(expected.abs().max().clamp(min=1))
    assert largest_difference(plain, reference_logits(model, {"input_ids": tokens})) < 1e-3
    assert largest_difference(found, plain) > 0.1


def test_before_is_after():
    model = text_model("qwen2")
    bridge = build_language_bridge(core_parts(model))
    tokens = text_tokens(12)
    with torch.no_grad():
        logits = bridge(tokens)
        before = snapshot(bridge)
        with BridgeResidMid(bridge):
            assert not any(module.training for module in bridge.modules()), "transformer_lens.patching asks"
            assert torch.equal(bridge(tokens), logits)
        assert snapshot(bridge) == before
        assert torch.equal(bridge(tokens), logits)
