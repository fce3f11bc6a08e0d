"""What is kept while the model runs gives every analysis the numbers of the whole pattern."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models import three_prompts

import lensplug
from lensplug import LensplugError, analysis
from lensplug.reductions import HeadMean, ModalityMass, Received, RolloutProduct
from lensplug.reductions.mixing import Mixing

MIXINGS = [
    Mixing(),
    Mixing(residual=0.0),
    Mixing("max", residual=0.3),
    Mixing("min", exclude_first=True),
    Mixing(heads=(1, 4)),
    Mixing(heads=((0, 1), (0, 5), (3, 2)), discard=0.5),
    Mixing("max", discard=0.9, exclude_first=True),
]


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


@pytest.fixture(scope="module")
def batch(lens):
    return three_prompts(lens)


@pytest.fixture(scope="module")
def whole(lens, batch):
    return lens.run_with_cache(batch)[1]


@pytest.fixture(params=[1, 100_000, 2**26], ids=["rows", "small blocks", "whole"])
def any_block(request, monkeypatch):
    monkeypatch.setattr("lensplug.patches.pattern_blocks.BLOCK_BYTES", request.param)


def options_of(mixing):
    return {name: getattr(mixing, name) for name in ("head_fusion", "heads", "residual", "discard", "exclude_first")}


@pytest.mark.parametrize("mixing", MIXINGS, ids=lambda one: one.in_words)
def test_the_rollout_is_that_of_the_whole_cache(lens, batch, whole, mixing):
    _, cache = lens.run_with_cache(batch, names_filter=[], keep=RolloutProduct(mixing))
    assert list(cache) == ["rollout", "rollout_rows"]
    for rows in (None, -1, [-3, -1]):
        kept, expected = (analysis.attention_rollout(one, rows=rows, **options_of(mixing)) for one in (cache, whole))
        torch.testing.assert_close(kept.values, expected.values, atol=2e-6, rtol=0)
        assert torch.equal(kept.rows, expected.rows)
        assert kept.provenance.convention == expected.provenance.convention


def test_the_rollout_in_blocks_of_any_size(lens, batch, whole, any_block):
    _, cache = lens.run_with_cache(batch, names_filter=[], keep=["rollout"])
    expected = analysis.attention_rollout(whole).values
    torch.testing.assert_close(analysis.attention_rollout(cache).values, expected, atol=2e-6, rtol=0)


def test_another_rollout_than_the_one_kept_is_refused_or_made_from_the_rest(lens, batch, whole):
    _, cache = lens.run_with_cache(batch, names_filter=[], keep=["rollout"])
    options: dict[str, Any]
    for options in ({"residual": 0.3}, {"head_fusion": "max"}, {"layers": (0, 2)}, {"per_layer": True}):
        with pytest.raises(LensplugError, match=r"the cache holds the rollout of all layers with all heads .*keep=\["):
            analysis.attention_rollout(cache, **options)
    _, both = lens.run_with_cache(batch, names_filter=[], keep=["rollout", "head_mean"])
    for options in ({"residual": 0.3}, {"layers": (1, 2), "per_layer": True}):
        kept, expected = (analysis.attention_rollout(one, rows=-1, **options) for one in (both, whole))
        torch.testing.assert_close(kept.values, expected.values, atol=2e-6, rtol=0)


@pytest.mark.parametrize("exclude_sink", [False, True])
def test_head_specialization_of_any_query(lens, batch, whole, any_block, exclude_sink):
    _, cache = lens.run_with_cache(batch, names_filter=[], keep="modality_mass")
    for query in (-1, -4, -9):
        kept, expected = (
            analysis.head_specialization(one, batch.modality, query=query, exclude_sink=exclude_sink)
            for one in (cache, whole)
        )
        assert kept.modalities == expected.modalities
        for name in ("mass", "chance", "entropy", "largest", "ratio"):
            torch.testing.assert_close(
                getattr(kept, name), getattr(expected, name), atol=2e-5, rtol=1e-4, equal_nan=True, check_dtype=False
            )
    with pytest.raises(LensplugError, match="the cache's masses are of another modality map"):
        labels = batch.modality.labels.clone()
        labels[:, -2] = 1
        analysis.head_specialization(cache, lensplug.ModalityMap(labels, labels > 9, labels))


def test_sinks_of_what_keys_receive(lens, batch, whole, any_block):
    _, cache = lens.run_with_cache(batch, names_filter=[], keep=Received(times=1.5))
    options: dict[str, Any] = {"rules": "attention", "times": 1.5, "heads": 0.3, "min_queries": 3}
    kept, expected = (analysis.sinks(one, batch, **options) for one in (cache, whole))
    assert torch.equal(kept.found, expected.found) and kept.found.any()
    torch.testing.assert_close(kept.received, expected.received, atol=2e-6, rtol=1e-4, equal_nan=True)


def test_means_of_some_layers(lens, batch, whole):
    _, cache = lens.run_with_cache(batch, names_filter=[], keep=HeadMean(layers=[3]))
    assert list(cache) == ["blocks.3.attn.head_mean"]
    kept, expected = (analysis.received_attention(one, layer=3) for one in (cache, whole))
    torch.testing.assert_close(kept.values, expected.values, atol=1e-4, rtol=1e-3, equal_nan=True)
    with pytest.raises(LensplugError, match="received_attention needs 'blocks.2"):
        analysis.received_attention(cache, layer=2)


def test_what_is_said_in_numbers_is_what_is_kept(lens, batch):
    for one in (HeadMean(), HeadMean(layers=[1, 2]), ModalityMass(), Received(), RolloutProduct()):
        _, cache = lens.run_with_cache(batch, names_filter=[], keep=one)
        assert sum(value.numel() for value in cache.values()) == one.numbers(batch, 6, 6)
        assert all(value.dtype == torch.float32 for value in cache.values())


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("rolout", "keep is 'rolout', expected 'head_mean'"),
        (["rollout", "cam"], "an entry of keep is 'cam', expected 'head_mean'"),
        (HeadMean(layers=[6]), "HeadMean has layer 6, the model has layers 0 to 5"),
        (RolloutProduct(Mixing(heads=(6,))), "heads has 6, the model has .* heads 0 to 5"),
        (RolloutProduct(Mixing(heads=((6, 0),))), r"heads has \(6, 0\)"),
    ],
)
def test_what_is_not_there_is_refused(lens, batch, keep, message):
    with pytest.raises(LensplugError, match=message):
        lens.run_with_cache(batch, names_filter=[], keep=keep)


def test_a_product_that_needs_more_than_patterns_is_refused():
    for mixing in (Mixing("value_weighted"), Mixing(residual="measured")):
        with pytest.raises(LensplugError, match="values and norms are not at hand"):
            RolloutProduct(mixing)


def test_a_reduction_of_ones_own(lens, batch, whole):
    class Largest:
        """The largest weight of every head."""

        def begin(self, inputs, layers, heads):
            self.named, self.noted = {"largest": torch.zeros(layers, heads)}, {"largest_of": "all"}
            return self

        def numbers(self, inputs, layers, heads):
            return layers * heads

        def __call__(self, layer, start, pattern):
            own = self.named["largest"]
            own[layer] = own[layer].maximum(pattern.amax(dim=(0, 2, 3)))

    _, cache = lens.run_with_cache(batch, names_filter=[], keep=Largest())
    expected = torch.stack([whole["pattern", layer].amax(dim=(0, 2, 3)) for layer in range(6)])
    torch.testing.assert_close(cache.cache_dict["largest"], expected)
    assert cache.largest_of == "all"
