"""GatedMLPInPlace: the same numbers to the bit, hooks as before, less memory."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from lensplug.patches import GatedMLPInPlace
from lensplug.patches.config_fix import build_hooked_transformer
from models import snapshot, text_model, text_tokens
from torch.profiler import ProfilerActivity, profile

TOKENS = text_tokens(24, 2)


@pytest.fixture(params=["llama", "qwen2", "qwen3-no-gqa-tied"])
def model(request):
    hf = text_model(request.param)
    return build_hooked_transformer(hf.get_decoder(), hf.get_output_embeddings(), hf.config)


@torch.no_grad()
def test_every_activation_is_the_same_to_the_bit(model):
    logits, cache = model.run_with_cache(TOKENS)
    with GatedMLPInPlace(model) as patch:
        assert patch.applied
        again, patched = model.run_with_cache(TOKENS)
    assert torch.equal(again, logits) and list(patched) == list(cache)
    assert all(torch.equal(patched[name], cache[name]) for name in cache)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hook_pre", "hook_pre_linear", "hook_post"])
def test_edits_act(model, name):
    hooks = [(f"blocks.1.mlp.{name}", lambda value, hook: value * 0.3)]
    expected = model.run_with_hooks(TOKENS, fwd_hooks=hooks)
    with GatedMLPInPlace(model):
        assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=hooks), expected)
    assert not torch.equal(model(TOKENS), expected)


def test_gradients_are_the_same(model):
    gradients = []
    for context in (nullcontext(), GatedMLPInPlace(model)):
        with context:
            model(TOKENS)[0, -1, 5].backward()
        gradients.append(model.blocks[0].mlp.W_gate.grad.clone())
        model.zero_grad()
    assert torch.equal(*gradients) and bool(gradients[0].any())


def test_before_is_after_also_when_a_hook_raises(model):
    before, held = snapshot(model), [dict(block.mlp.__dict__) for block in model.blocks]

    def fail(value, hook):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), GatedMLPInPlace(model):
        model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.2.hook_resid_pre", fail)])
    assert snapshot(model) == before and [dict(block.mlp.__dict__) for block in model.blocks] == held


@torch.no_grad()
def test_two_tensors_of_the_mlp_in_place_of_four():
    hf = text_model("llama", intermediate_size=4096)
    model = build_hooked_transformer(hf.get_decoder(), hf.get_output_embeddings(), hf.config)
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
    assert peak() > 3.9
    with GatedMLPInPlace(model):
        assert peak() < 2.2
