"""HookNames: HookedTransformer's names, one for each hook of a bridge; before = after."""

from __future__ import annotations

import copy

import pytest
import torch
from support.built import ENGINES, built, core_parts
from support.models import largest_difference, snapshot, text_model, text_tokens

from lensplug import LensplugError
from lensplug.patches import HookNames
from lensplug.patches.bridge.core import build_language_bridge

GATED = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in", "attn.hook_result")


@pytest.fixture
def bridge():
    hf = text_model("qwen3")
    return build_language_bridge(core_parts(hf))


@pytest.mark.parametrize("engine", ENGINES[:1])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_names_are_those_of_hooked_transformer(engine, name):
    hf = text_model(name)
    theirs, ours = built(engine, hf), built("bridge", hf)
    assert [n for n in theirs.hook_dict if not n.endswith(GATED)] == list(ours.hook_dict)
    tokens = text_tokens(9)
    assert list(theirs.run_with_cache(tokens)[1]) == list(ours.run_with_cache(tokens)[1])


def test_every_hook_has_one_name_and_is_told_it(bridge):
    told, tokens = [], text_tokens(9)
    with HookNames(bridge):
        names = bridge.hook_dict
        assert len({id(point) for point in names.values()}) == len(names) > 60
        assert all(point.name == name for name, point in names.items())
        _, cache = bridge.run_with_cache(tokens)
        assert set(cache) == set(names)
        bridge.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, lambda value, hook: told.append(hook.name))])
        assert told == list(cache)
        _, some = bridge.run_with_cache(tokens, names_filter="blocks.1.hook_resid_mid")
        assert list(some) == ["blocks.1.hook_resid_mid"]
        torch.testing.assert_close(some["resid_mid", 1], cache["resid_mid", 1])


def test_before_is_after(bridge):
    names = {name: point.name for name, point in bridge.hook_dict.items()}
    before = snapshot(bridge)
    with pytest.raises(ZeroDivisionError), HookNames(bridge):
        assert set(bridge.hook_dict) != set(names)
        raise ZeroDivisionError
    assert snapshot(bridge) == before
    assert {name: point.name for name, point in bridge.hook_dict.items()} == names


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_a_pass_stops_at_a_layer(bridge, layer):
    tokens = text_tokens(9)
    with HookNames(bridge):
        _, whole = bridge.run_with_cache(tokens)
        residual, cache = bridge.run_with_cache(tokens, stop_at_layer=layer)
        assert bridge.run_with_cache(tokens)[0].shape[-1] == bridge.cfg.d_vocab, "the next pass goes to the end"
    torch.testing.assert_close(residual, whole["resid_pre", layer % 3])
    assert not any(name.startswith(f"blocks.{layer % 3}") for name in cache)


def test_after_the_last_layer_there_is_the_residual_stream_and_no_logits(bridge):
    tokens = text_tokens(9)
    with HookNames(bridge):
        logits, whole = bridge.run_with_cache(tokens)
        residual, cache = bridge.run_with_cache(tokens, stop_at_layer=3)
        for given in (residual, bridge(tokens, stop_at_layer=3), bridge.run_with_hooks(tokens, stop_at_layer=3)):
            torch.testing.assert_close(given, whole["resid_post", 2])
        assert set(whole) - set(cache) == {name for name in whole if name.startswith(("ln_final", "unembed"))}
        assert torch.equal(bridge(tokens), logits), "the next pass goes to the end"


def test_hooks_that_need_a_setting_are_there_after_it(bridge):
    tokens = text_tokens(9)
    with HookNames(bridge):
        assert not any(name.endswith(GATED) for name in bridge.hook_dict)
        logits = bridge(tokens)
        bridge.set_use_attn_result(True)
        again, cache = bridge.run_with_cache(tokens)
        bridge.set_use_attn_result(False)
    assert cache["blocks.2.attn.hook_result"].shape == (1, 9, 4, 32)
    assert largest_difference(again, logits) < 1e-4
    torch.testing.assert_close(cache["result", 2].sum(2), cache["attn_out", 2], atol=1e-4, rtol=1e-4)


def test_compatibility_mode_is_refused(bridge):
    with HookNames(bridge), pytest.raises(LensplugError, match=r"wrap again with lensplug.wrap\(..., process_weights"):
        bridge.enable_compatibility_mode()


def test_the_bridges_own_names_are_understood(bridge):
    """By `hook_dict`, hooks and caches; what is listed, and what a cache holds, stays one name each."""
    own, tokens = bridge.hook_dict, text_tokens(9)
    _, everything = bridge.run_with_cache(tokens)
    with HookNames(bridge):
        assert all(bridge.hook_dict[name] is point for name, point in own.items())
        assert "blocks.0.nothing" not in bridge.hook_dict and bridge.hook_dict.get("blocks.0.nothing") is None
        _, cache = bridge.run_with_cache(tokens)
        for name in ("blocks.1.hook_out", "blocks.0.hook_in", "blocks.2.attn.hook_out", "blocks.1.attn.q.hook_out"):
            assert name not in list(cache)
            torch.testing.assert_close(cache[name], everything[name])
            _, one = bridge.run_with_cache(tokens, names_filter=name)
            _, some = bridge.run_with_cache(tokens, names_filter=[name, bridge.hook_dict[name].name])
            _, by_function = bridge.run_with_cache(tokens, names_filter=lambda n, name=name: n == name)
            assert list(one) == list(some) == list(by_function) == [bridge.hook_dict[name].name]
            torch.testing.assert_close(one[name], everything[name])
        _, hidden = bridge.run_with_cache(tokens, names_filter=["blocks.1.ln1.hook_out", "hook_embed"])
        assert set(hidden) == {"blocks.1.ln1.hook_out", "hook_embed"}
        torch.testing.assert_close(hidden["blocks.1.ln1.hook_out"], everything["blocks.1.ln1.hook_out"])
        assert "blocks.1.ln1.hook_out" not in list(bridge.run_with_cache(tokens)[1]), "asked for once"
        assert type(copy.deepcopy(cache.cache_dict)) is dict


def test_a_hook_is_told_the_name_that_it_was_asked_for_by(bridge):
    tokens, told = text_tokens(9), []

    def silence(value, hook):
        told.append((hook.name, hook.layer()))
        return value * 0

    with HookNames(bridge):
        by_ours = bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_attn_out", silence)])
        by_theirs = bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_out", silence)])
        with bridge.hooks(fwd_hooks=[(lambda name: name == "blocks.1.attn.hook_out", silence)]):
            by_function = bridge(tokens)
        bridge.add_hook("blocks.1.attn.hook_out", silence)
        added = bridge(tokens)
        bridge.reset_hooks()
        assert not torch.equal(bridge(tokens), added)
        bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.2.ln1.hook_out", silence)])
        bridge.run_with_hooks(tokens, fwd_hooks=[(lambda name: name == "blocks.2.ln1.hook_out", silence)])
    assert torch.equal(by_ours, by_theirs) and torch.equal(by_ours, added) and torch.equal(by_ours, by_function)
    ours, theirs = ("blocks.1.hook_attn_out", 1), ("blocks.1.attn.hook_out", 1)
    assert told[:4] == [ours, theirs, ours, theirs]
    assert told[4:] == [("blocks.2.ln1.hook_out", 2)] * 2


def test_a_function_of_the_name_takes_hooked_transformers_names_first(bridge):
    """`"ln2" in name` must not edit the stream, because a bridge calls the stream there `ln2.hook_in`."""
    tokens, told = text_tokens(9), []
    with HookNames(bridge):
        bridge.run_with_hooks(
            tokens, fwd_hooks=[(lambda name: "blocks.0.ln2" in name, lambda value, hook: told.append(hook.name))]
        )
        _, cache = bridge.run_with_cache(tokens, names_filter=lambda name: "ln2" in name)
    assert told == ["blocks.0.ln2.hook_scale", "blocks.0.ln2.hook_normalized"]
    assert {name.rpartition("ln2.")[2] for name in cache} == {"hook_scale", "hook_normalized"}


def test_names_that_need_a_setting_are_found_by_either_name_and_kept_once(bridge):
    tokens = text_tokens(9)
    with HookNames(bridge):
        bridge.set_use_split_qkv_input(True)
        listed = [name for name in bridge.hook_dict if name.startswith("blocks.1") and name.endswith("q_input")]
        _, cache = bridge.run_with_cache(tokens)
        kept = [name for name in cache if name.startswith("blocks.1") and name.endswith("q_input")]
        bridge.set_use_split_qkv_input(False)
    assert listed == ["blocks.1.hook_q_input", "blocks.1.attn.hook_q_input"]
    assert kept == ["blocks.1.hook_q_input"]
    assert torch.equal(cache["blocks.1.attn.hook_q_input"], cache["blocks.1.hook_q_input"])
