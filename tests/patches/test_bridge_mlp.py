"""BridgeMLPInPlace: the same numbers to the bit, hooks as before, less memory; before = after."""

from __future__ import annotations

import pytest
import torch
from built import built
from lensplug.patches import BridgeMLPInPlace
from models import snapshot, text_model, text_tokens
from torch.profiler import ProfilerActivity, profile

TOKENS = text_tokens(24, 2)


@pytest.fixture(params=["llama", "qwen3-no-gqa-tied"])
def model(request):
    return built("bridge", text_model(request.param))


@torch.no_grad()
def test_every_activation_is_the_same_to_the_bit(model):
    logits, cache = model.run_with_cache(TOKENS)
    before, held = snapshot(model), [dict(block.mlp.__dict__) for block in model.blocks]
    with BridgeMLPInPlace(model) as patch:
        assert patch.applied
        again, patched = model.run_with_cache(TOKENS)
        assert all("forward" in block.mlp.__dict__ for block in model.blocks), "it is the bridge's that is replaced"
    assert torch.equal(again, logits) and list(patched) == list(cache)
    assert all(torch.equal(patched[name], cache[name]) for name in cache)
    assert snapshot(model) == before and [dict(block.mlp.__dict__) for block in model.blocks] == held


@torch.no_grad()
@pytest.mark.parametrize("name", ["hook_pre", "hook_pre_linear", "hook_post"])
def test_edits_act(model, name):
    hooks = [(f"blocks.1.mlp.{name}", lambda value, hook: value * 0.3)]
    expected = model.run_with_hooks(TOKENS, fwd_hooks=hooks)
    with BridgeMLPInPlace(model):
        assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=hooks), expected)
    assert not torch.equal(model(TOKENS), expected)


def test_gradients_are_the_same(model):
    def gradient():
        model.zero_grad()
        model(TOKENS)[0, -1, 5].backward()
        return next(model.blocks[0].mlp.parameters()).grad.clone()

    expected = gradient()
    with BridgeMLPInPlace(model):
        assert torch.equal(gradient(), expected) and bool(expected.any())


@torch.no_grad()
def test_two_tensors_of_the_mlp_in_place_of_three():
    model = built("bridge", text_model("llama", intermediate_size=4096))
    x = torch.randn(1, 256, model.cfg.d_model)

    def peak():
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
            model.blocks[0].mlp(x)
        now, most = 0, 0
        for event in sorted(measured.profiler.kineto_results.events(), key=lambda one: one.start_ns()):
            if event.name() == "[memory]":
                now += event.nbytes()
                most = max(most, now)
        return most / (256 * 4096 * 4)

    peak()
    assert peak() > 2.9
    with BridgeMLPInPlace(model):
        assert peak() < 2.2
