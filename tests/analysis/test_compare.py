"""Two results side by side: aligned by label, differences by hand, and refused when they are not of the same thing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support.caches import ROTARY, cache_of_patterns, causal_patterns, run, text_model, tokens

import lensplug
from lensplug import analysis
from lensplug.positions.modality_map import ModalityMap


def received(seed, **options):
    return analysis.received_attention(cache_of_patterns(causal_patterns(2, 1, 3, 6, seed)), **options)


def test_differences_are_b_less_a():
    a, b = received(0), received(1)
    result = analysis.compare(a, b)
    assert result.labels == ("example", "position", "token", "modality") and result.numbers[0] == "received"
    expected = (b.values - a.values)[0]
    assert result.table.received_difference.tolist() == pytest.approx(expected.tolist())
    assert result.table.received_a.tolist() == pytest.approx(a.values[0].tolist())
    largest = result.largest(1)
    assert int(largest.position[0]) == int(expected.abs().argmax())
    assert analysis.compare(a, a).table.received_difference.abs().max() == 0


@pytest.fixture(scope="module")
def two():
    """Caches of two models on the same tokens, and their modality map."""
    ids = tokens(2, 8)
    m = ModalityMap.build(ids, torch.ones_like(ids), placeholder_ids={"audio": int(ids[0, 3])})
    return [run(text_model(seed, **ROTARY), ids)[1] for seed in (0, 1)], m


ANALYSES = {
    "heads": lambda cache, m: analysis.head_specialization(cache, m),
    "lens": lambda cache, m: analysis.logit_lens(cache, positions=[-2, -1], target=3),
    "rollout": lambda cache, m: analysis.attention_rollout(cache),
    "received": lambda cache, m: analysis.received_attention(cache, modality=m),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_can_be_compared(name, two):
    caches, m = two
    a, b = (ANALYSES[name](cache, m) for cache in caches)
    result = analysis.compare(a, b)
    assert len(result.table) == len(a.to_dataframe()) == len(b.to_dataframe())
    number = result.numbers[0]
    assert number == type(a).main_number
    merged = a.to_dataframe()[number].sort_values().tolist()
    assert result.table[f"{number}_a"].sort_values().tolist() == pytest.approx(merged, nan_ok=True)
    assert float(result.table[f"{number}_difference"].abs().max()) > 0.01
    assert result.provenance_a == a.provenance


def test_head_maps_by_hand(two):
    caches, m = two
    a, b = (analysis.head_specialization(cache, m) for cache in caches)
    result = analysis.compare(a, b)
    row = result.table[(result.table.layer == 2) & (result.table["head"] == 1) & (result.table.modality == "audio")]
    index = a.modalities.index("audio")
    assert float(row.ratio_difference.iloc[0]) == pytest.approx(float(b.mean[2, 1, index] - a.mean[2, 1, index]))
    assert {"label_a", "label_b"} <= set(result.table) and "label_difference" not in result.table


def test_rows_keep_the_order_of_the_result():
    """Sorted as text, layer 10 would come before layer 2."""
    ids = tokens(1, 5)
    a, b = (
        analysis.logit_lens(run(text_model(seed, **{**ROTARY, "n_layers": 11}), ids)[1], target=3) for seed in (0, 1)
    )
    result = analysis.compare(a, b)
    assert result.table.entry.tolist() == ["embed", *map(str, range(11))]
    assert result.table.target_rank_b.tolist() == b.rank[0, :, 0].tolist()


def test_rows_are_aligned_by_label_and_not_by_place(two):
    caches, _ = two
    a = analysis.attention_rollout(caches[0], rows=[2, -1])
    b = analysis.attention_rollout(caches[1], rows=[-1, 2])
    result = analysis.compare(a, b)
    assert result.table.value_difference.tolist() == pytest.approx((b.values.flip(1) - a.values).flatten().tolist())


def test_refuses_what_is_measured_twice(two):
    caches, _ = two
    a, b = (analysis.attention_rollout(cache, rows=[-1, 7]) for cache in caches)
    with pytest.raises(lensplug.LensplugError, match="result a has example 0, row 7, pos 0 twice"):
        analysis.compare(a, b)


def test_says_which_labels_differ():
    ids = tokens(1, 5)
    a, b = (analysis.logit_lens(run(text_model(seed, **ROTARY), ids)[1], target=seed + 3) for seed in (0, 1))
    with pytest.raises(lensplug.LensplugError, match=r"target \('3' in a only, '4' in b only\)"):
        analysis.compare(a, b)


def test_refuses_what_is_not_the_same(two):
    caches, m = two
    with pytest.raises(lensplug.LensplugError, match="a ReceivedAttention and a Rollout cannot be compared"):
        analysis.compare(received(0), analysis.attention_rollout(caches[0]))
    with pytest.raises(lensplug.LensplugError, match="different conventions"):
        analysis.compare(received(0), received(1, scale="none"))
    with pytest.raises(lensplug.LensplugError, match="'layer 0, .* and 'layer 1, "):
        analysis.compare(received(0), received(1, layer=1))
    comparison = analysis.compare(received(0), received(1))
    with pytest.raises(lensplug.LensplugError, match="a Comparison and a Comparison cannot be compared"):
        analysis.compare(comparison, comparison)
    longer = analysis.received_attention(cache_of_patterns(causal_patterns(2, 1, 3, 9)))
    with pytest.raises(lensplug.LensplugError, match="0 rows are in a only, 3 in b only, .*position 6, "):
        analysis.compare(received(0), longer)
    with pytest.raises(lensplug.LensplugError, match="'mass' is no number of received_attention: it has received"):
        analysis.compare(received(0), received(1)).largest(number="mass")
    frozen: Any = analysis.compare(received(0), received(1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.analysis = "x"
