"""BridgeRouting: which experts each position takes, by hooks whose edits count."""

from __future__ import annotations

import pytest
import torch
from support.beside import given_of, wrapped
from support.models import largest_difference, reference_logits

from lensplug import LensplugError

NAMES = ("hook_router_logits", "hook_expert_weights", "hook_expert_indices")


@pytest.fixture
def lens():
    return wrapped("qwen3-vl-moe")


@pytest.fixture
def given():
    return given_of("qwen3-vl-moe")


def test_they_are_hugging_faces(lens, given):
    """The second layer has no experts, and no such hook; its neurons have theirs."""
    routed = []
    layers = [lens.core.decoder.layers[index] for index in (0, 2)]
    handles = [layer.mlp.gate.register_forward_hook(lambda _, args, output: routed.append(output)) for layer in layers]
    reference_logits(lens.hf_model, given)
    for handle in handles:
        handle.remove()
    inputs = lens.encode(given)
    real = inputs.attention_mask.bool()
    _, cache = lens.run_with_cache(inputs)
    for layer, theirs in zip((0, 2), routed, strict=True):
        for name, value in zip(NAMES, theirs, strict=True):
            found = cache[f"blocks.{layer}.mlp.{name}"]
            assert found.shape == (2, 30, 6 if name == NAMES[0] else 2)
            torch.testing.assert_close(found[real], value.view(found.shape)[real], atol=1e-4, rtol=1e-4)
        assert f"blocks.{layer}.mlp.hook_post" not in lens.model.hook_dict
    assert f"blocks.1.mlp.{NAMES[0]}" not in cache and "blocks.1.mlp.hook_post" in cache


def test_weights_and_indices_count(lens, given, monkeypatch):
    """As if the router had chosen the expert behind each, by equal parts."""
    inputs = lens.encode(given)
    router = lens.core.decoder.layers[0].mlp.gate
    routing = router.forward

    def other(hidden_states):
        logits, weights, indices = routing(hidden_states)
        return logits, torch.full_like(weights, 0.25), (indices + 1) % 6

    monkeypatch.setattr(router, "forward", other)
    expected = reference_logits(lens.hf_model, given)
    monkeypatch.undo()
    hooks = [
        ("blocks.0.mlp.hook_expert_weights", lambda weights, hook: torch.full_like(weights, 0.25)),
        ("blocks.0.mlp.hook_expert_indices", lambda indices, hook: (indices + 1) % 6),
    ]
    with torch.no_grad():
        found = lens.model.run_with_hooks(inputs, fwd_hooks=hooks)
        assert largest_difference(found, expected, inputs.attention_mask) < 1e-4
        assert largest_difference(found, lens.model(inputs), inputs.attention_mask) > 0.5


def test_an_edit_of_the_logits_is_refused(lens, given):
    hooks = [("blocks.0.mlp.hook_router_logits", lambda logits, hook: 2 * logits)]
    with pytest.raises(LensplugError, match="from which the router has made its choice already"):
        lens.model.run_with_hooks(lens.encode(given), fwd_hooks=hooks)


def test_steps_of_an_answer_are_routed_one_by_one(lens, given):
    shapes = []
    with lens.model.hooks([("blocks.2.mlp.hook_expert_indices", lambda indices, hook: shapes.append(indices.shape))]):
        lens.generate(lens.encode(given), max_new_tokens=3)
    assert shapes == [(2, 30, 2), (2, 1, 2), (2, 1, 2)]
