"""GatedMLPInPlace and BridgeMLPInPlace: the same numbers to the bit, hooks as before, less memory."""

from __future__ import annotations

import pytest
import torch
from support.built import ENGINES, built, mlp_in_place
from support.models import snapshot, text_model, text_tokens
from torch.profiler import ProfilerActivity, profile

TOKENS = text_tokens(24, 2)
ROOM = {"hooked_transformer": 4, "bridge": 3}
"""How many tensors [pos d_mlp] there are at once without the patch."""


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(params=["llama", "qwen2", "qwen3-no-gqa-tied"])
def model(engine, request):
    return built(engine, text_model(request.param))


@pytest.fixture
def in_place(engine):
    return mlp_in_place(engine)


@torch.no_grad()
def test_every_activation_is_the_same_to_the_bit(model, in_place):
    logits, cache = model.run_with_cache(TOKENS)
    with in_place(model) as patch:
        assert patch.applied
        again, patched = model.run_with_cache(TOKENS)
        assert all("forward" in block.mlp.__dict__ for block in model.blocks), "it is this one that is replaced"
    assert torch.equal(again, logits) and list(patched) == list(cache)
    assert all(torch.equal(patched[name], cache[name]) for name in cache)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hook_pre", "hook_pre_linear", "hook_post"])
def test_edits_act(model, in_place, name):
    hooks = [(f"blocks.1.mlp.{name}", lambda value, hook: value * 0.3)]
    expected = model.run_with_hooks(TOKENS, fwd_hooks=hooks)
    with in_place(model):
        assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=hooks), expected)
    assert not torch.equal(model(TOKENS), expected)


def test_gradients_are_the_same(model, in_place):
    def gradients():
        model.zero_grad()
        model(TOKENS)[0, -1, 5].backward()
        return [parameter.grad.clone() for parameter in model.blocks[0].mlp.parameters()]

    expected = gradients()
    with in_place(model):
        assert all(map(torch.equal, gradients(), expected)) and bool(expected[0].any())


def test_before_is_after_also_when_a_hook_raises(model, in_place):
    before, held = snapshot(model), [dict(block.mlp.__dict__) for block in model.blocks]

    def fail(value, hook):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), in_place(model):
        model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.2.hook_resid_pre", fail)])
    assert snapshot(model) == before and [dict(block.mlp.__dict__) for block in model.blocks] == held


@torch.no_grad()
def test_two_tensors_of_the_mlp_in_place_of_more(engine, in_place):
    model = built(engine, text_model("llama", intermediate_size=4096))
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
    assert peak() > ROOM[engine] - 0.1
    with in_place(model):
        assert peak() < 2.2
