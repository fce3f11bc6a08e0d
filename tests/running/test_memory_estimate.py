"""The estimate of a run against the run: what its cache holds to the byte, and its peak within a margin."""

from __future__ import annotations

import gc

import pytest
import torch
from support.models import TEXT_CORES, text_model, text_tokens
from torch.profiler import ProfilerActivity, profile

import lensplug
from lensplug import LensplugError, analysis
from lensplug.reductions import HeadMean

OPTIONS = {
    "all": {},
    "rows": {"query_positions": [-1, -2], "logit_positions": [-1]},
    "needs": {"needs": [analysis.logit_lens, analysis.head_specialization], "residual_positions": [-1]},
    "nothing": {"needs": analysis.attention_rollout, "query_positions": [], "logit_positions": []},
    "reduced": {"names_filter": [], "keep": ["rollout", "modality_mass", HeadMean(layers=[0, 1])]},
    "early": {"stop_at_layer": 2},
    "pre": {"names_filter": lambda name: name.endswith("hook_resid_pre")},
    "logits": {"names_filter": ["unembed.hook_in", "unembed.hook_out", "ln_final.hook_scale"]},
}


def lens_of(name, dtype=torch.float32, **config):
    return lensplug.wrap(text_model(name, **config).to(dtype), check=False)


def inputs_of(lens, length=24, padded=False):
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, : 5 if padded else 0] = 0
    return lens.encode({"input_ids": text_tokens(length, 2), "attention_mask": mask})


def bytes_of(tensors):
    """Of what these tensors keep alive, each storage once."""
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors if one.numel()}
    return sum(storages.values())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", TEXT_CORES)
def test_what_the_cache_holds_to_the_byte(name, options):
    lens = lens_of(name)
    inputs = inputs_of(lens)
    estimate = lens.estimate(inputs, **options)
    logits, cache = lens.run_with_cache(inputs, **options)
    if "stop_at_layer" in options:  # the residual is what comes back
        logits = torch.empty(0)
    held = [one for key, one in cache.items() if key != "hook_embed" or "blocks.0.hook_resid_pre" not in cache]
    if "stop_at_layer" in options:
        assert sum(estimate.by_hook.values()) == bytes_of(held)
    else:
        assert estimate.kept == bytes_of([*held, logits])
    assert estimate.total > estimate.kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [OPTIONS["all"], OPTIONS["rows"]], ids=["all", "rows"])
def test_other_dtypes(dtype, options):
    lens = lens_of("qwen3", dtype)
    inputs = inputs_of(lens)
    logits, cache = lens.run_with_cache(inputs, **options)
    assert lens.estimate(inputs, **options).kept == bytes_of([*cache.values(), logits])


def test_hooks_that_fire_only_where_they_are_wanted():
    lens = lens_of("llama")
    lens.model.set_use_attn_result(True)
    lens.model.set_use_hook_mlp_in(True)
    inputs = inputs_of(lens)
    logits, cache = lens.run_with_cache(inputs)
    assert "blocks.0.attn.hook_result" in cache and "blocks.0.hook_mlp_in" in cache
    difference = lens.estimate(inputs).kept - bytes_of([*cache.values(), logits])
    assert abs(difference) <= 2 * 3 * 2 * 24 * 32 * 4  # hook_mlp_in may share the stream's memory


def peak(lens, inputs, **options):
    """The most that is allocated at once while a run lasts."""
    lens.run_with_cache(inputs, **options)
    gc.collect()  # what an earlier run left, and is freed during this one, would be counted as less than nothing
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        kept = lens.run_with_cache(inputs, **options)
    now, most = 0, 0
    for event in sorted(measured.profiler.kineto_results.events(), key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    del kept
    return most


WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("length", [64, 400])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_peak_within_a_margin(options, length, padded, monkeypatch):
    monkeypatch.setattr("lensplug.running.memory_estimate.BLOCK_BYTES", 3 * 2**18)
    monkeypatch.setattr("lensplug.patches.pattern_blocks.BLOCK_BYTES", 2**19)
    lens = lens_of("qwen2", **WIDE)
    inputs = inputs_of(lens, length, padded)
    ratio = lens.estimate(inputs, **options).total / peak(lens, inputs, **options)
    print(f"{ratio:.2f}")
    assert 0.95 < ratio < 1.5


def test_what_does_not_fit_is_refused_with_numbers_and_the_cheaper_call(monkeypatch):
    lens = lens_of("llama")
    inputs = inputs_of(lens)
    estimate = lens.estimate(inputs)
    monkeypatch.setattr("lensplug.running.memory_estimate.free_bytes", lambda device: estimate.total // 2)
    with pytest.raises(LensplugError) as refused:
        lens.run_with_cache(inputs)
    for part in (r"MB on cpu, and", "query_positions=[-1]", "residual_positions=[-1]", "hook_pattern", "stay on cpu"):
        assert part in str(refused.value)
    small = {"needs": analysis.logit_lens, "query_positions": [], "residual_positions": [-1], "logit_positions": [-1]}
    lens.run_with_cache(inputs, **small)
    assert lens.estimate(inputs, **small).cheaper is None
    monkeypatch.setattr("lensplug.running.memory_estimate.free_bytes", lambda device: 10)
    with pytest.raises(LensplugError) as refused:
        lens.run_with_cache(inputs, **small)
    assert "The last position alone" not in str(refused.value)


def test_a_cache_on_another_device_counts_there(monkeypatch):
    lens = lens_of("llama")
    inputs = inputs_of(lens)
    estimate = lens.estimate(inputs, device="meta")
    assert (str(estimate.device), str(estimate.kept_on)) == ("cpu", "meta")
    free = {"cpu": estimate.working * 2 + estimate.logits, "meta": estimate.kept // 2}
    monkeypatch.setattr("lensplug.running.memory_estimate.free_bytes", lambda device: free[device.type])
    with pytest.raises(LensplugError, match="on meta, and"):
        lens.run_with_cache(inputs, device="meta")


def test_a_misspelt_hook_and_options_are_refused():
    lens = lens_of("llama")
    with pytest.raises(LensplugError, match="'hook_embd' is no hook"):
        lens.estimate(inputs_of(lens), names_filter="hook_embd")
    with pytest.raises(LensplugError, match="position 99 is out of range"):
        lens.estimate(inputs_of(lens), query_positions=99)


def test_a_7b_model_of_7300_tokens_is_told_in_a_moment():
    """From shapes alone: 28 heads x 7,300^2 in two hooks of 28 layers."""
    lens = lens_of("qwen2")
    cfg = lens.model.cfg
    for name, value in {"n_heads": 28, "d_model": 3584, "d_head": 128, "d_mlp": 18944, "d_vocab_out": 152_064}.items():
        setattr(cfg, name, value)
    inputs = lens.encode({"input_ids": torch.ones(1, 7300, dtype=torch.long)})
    estimate = lens.estimate(inputs)
    assert estimate.by_hook["hook_pattern"] == 3 * 28 * 7300**2 * 4
    assert estimate.logits == 0 and estimate.by_hook["hook_out"] == 7300 * 152_064 * 4
    assert "17.9 GB  hook_pattern" in str(estimate)
