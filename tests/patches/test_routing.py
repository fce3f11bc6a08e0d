"""BridgeRouting: which experts each position takes, by hooks whose edits count."""

from __future__ import annotations

import pytest
import torch
from support.beside import given_of, wrapped
from support.families.media import text_inputs
from support.families.small import small_model
from support.gemma4 import wrapped as gemma4_wrapped
from support.models import largest_difference, reference_logits

import lensplug
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


TRIED = ("glm4v_moe", "minimax_m3_vl", "gemma4-A")
"""Cores that no table knows, whose mixtures stay as they are."""


@pytest.fixture(params=TRIED)
def tried(request):
    if request.param == "gemma4-A":
        return gemma4_wrapped("A")
    return lensplug.wrap(small_model(request.param), prove=False)


def routers_of(lens):
    modules = [
        (layer, part)
        for layer, of_layer in enumerate(lens.core.decoder.layers)
        for part in of_layer.modules()
        if "router" in type(part).__name__.lower()
    ]
    assert modules
    return modules


def test_routers_of_cores_in_no_table_are_hugging_faces(tried):
    given = text_inputs(7)
    given["input_ids"] = given["input_ids"] % tried.core.decoder.embed_tokens.weight.shape[0]
    given = {name: value.repeat(2, 1) for name, value in given.items()}
    given["input_ids"][1] = given["input_ids"][1].flip(0)
    routed: dict[int, tuple[torch.Tensor, ...]] = {}
    handles = [
        part.register_forward_hook(lambda _, args, output, layer=layer: routed.setdefault(layer, output))
        for layer, part in routers_of(tried)
    ]
    expected = reference_logits(tried.hf_model, given)
    for handle in handles:
        handle.remove()
    inputs = tried.encode(given)
    logits, cache = tried.run_with_cache(inputs)
    assert largest_difference(logits, expected) < 1e-4 * max(1.0, float(expected.abs().max()))
    gives_logits = "Gemma4" not in type(tried.core.decoder).__name__
    for layer, theirs in routed.items():
        for name, value in zip(NAMES, theirs, strict=True):
            full = f"blocks.{layer}.mlp.{name}"
            if name == NAMES[0] and not gives_logits:
                assert full not in cache, "it returns probabilities, which are no logits"
                continue
            assert cache[full].shape == (2, 7, value.shape[-1])
            torch.testing.assert_close(cache[full].flatten(0, 1), value.flatten(0, -2), atol=1e-4, rtol=1e-4)
    # An edit counts: other experts.
    layer = max(routed)
    edit = [(f"blocks.{layer}.mlp.hook_expert_indices", lambda indices, hook: (indices + 1) % theirs[0].shape[-1])]
    with torch.no_grad():
        edited = tried.model.run_with_hooks(inputs, fwd_hooks=edit)
    assert largest_difference(edited, logits) > 1e-2
