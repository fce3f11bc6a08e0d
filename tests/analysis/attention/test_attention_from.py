"""Attention from a few queries against the patterns themselves, with padding on both sides, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support.caches import ROTARY, cache_of_patterns, causal_patterns, padded, run, text_model, tokens

from lensplug import LensplugError, analysis


def test_rows_are_those_of_the_patterns():
    patterns = causal_patterns(layers=3, batch=2, heads=4, length=7)
    result = analysis.attention_from(cache_of_patterns(patterns), queries=[4, -1])
    assert result.values.shape == (2, 3, 4, 2, 7) and result.values.dtype == torch.float32
    assert result.queries.tolist() == [[4, 6], [4, 6]]
    for layer, pattern in enumerate(patterns):
        torch.testing.assert_close(result.values[:, layer], pattern[:, :, [4, 6]])
    torch.testing.assert_close(result.values.sum(-1), torch.ones(2, 3, 4, 2))


@pytest.mark.parametrize("left", [True, False])
def test_the_last_query_of_a_padded_batch_is_each_examples_own(left):
    model = text_model(**ROTARY)
    rows = [tokens(1, 5, seed=1)[0], tokens(1, 8, seed=2)[0]]
    ids, mask = padded(rows, left=left)
    _, cache = run(model, ids, mask)
    result = analysis.attention_from(cache, queries=-1, attention_mask=mask)
    assert result.queries[:, 0].tolist() == [7 if left else 4, 7]
    for example, row in enumerate(rows):
        _, alone = run(model, row[None])
        kept = result.values[example][..., mask[example].bool()]
        torch.testing.assert_close(kept, analysis.attention_from(alone).values[0], atol=1e-5, rtol=1e-4)
        assert not result.values[example][..., ~mask[example].bool()].any()


def test_it_needs_the_patterns_and_nothing_else():
    model = text_model()
    _, cache = run(model, tokens(1, 6), names_filter=analysis.attention_from.needs)
    assert sorted(cache.keys()) == [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    assert analysis.attention_from(cache).values.shape == (1, 3, 3, 1, 6)
    _, cache = run(model, tokens(1, 6), names_filter=lambda name: name.startswith("blocks.0."))
    with pytest.raises(LensplugError, match="attention_from.needs"):
        analysis.attention_from(cache)


def test_half_precision_is_read_as_fp32():
    patterns = [pattern.bfloat16() for pattern in causal_patterns(layers=1, batch=1, heads=2, length=5)]
    result = analysis.attention_from(cache_of_patterns(patterns), queries=2)
    assert torch.equal(result.values[:, 0, :, 0], patterns[0][:, :, 2].float())


def test_rows_for_overlays():
    patterns = causal_patterns(layers=2, batch=1, heads=3, length=4)
    result = analysis.attention_from(cache_of_patterns(patterns), queries=[1, 3])
    mean, one = result.by_position(query=-1), result.by_position(query=0, head=2)
    assert list(mean) == list(one) == ["layer 0", "layer 1"]
    torch.testing.assert_close(mean["layer 1"], patterns[1][0, :, 3].mean(0))
    torch.testing.assert_close(one["layer 0"], patterns[0][0, 2, 1])
    for wrong, message in (
        ({"query": 2}, "query is 2, the result has 2"),
        ({"example": 1}, "example is 1"),
        ({"head": 3}, "head from 0 to 2"),
        ({"head": "max"}, "'mean' or a whole number"),
    ):
        with pytest.raises(LensplugError, match=message):
            result.by_position(**wrong)


def test_the_table_has_a_row_for_each_value_under_its_names():
    patterns = causal_patterns(layers=2, batch=2, heads=3, length=5)
    result = analysis.attention_from(cache_of_patterns(patterns), queries=[2, 4])
    frame = result.to_dataframe()
    assert len(frame) == 2 * 2 * 3 * 2 * 5 and list(frame)[:5] == list(result.label_columns)
    row = frame[(frame.example == 1) & (frame.layer == 1) & (frame["head"] == 2) & (frame["query"] == 4)]
    assert row[row.key == 3].attention.item() == pytest.approx(float(patterns[1][1, 2, 4, 3]))


def test_what_is_refused():
    cache = cache_of_patterns(causal_patterns(layers=1, batch=1, heads=2, length=5))
    with pytest.raises(LensplugError, match="queries is empty"):
        analysis.attention_from(cache, queries=[])
    with pytest.raises(LensplugError, match="out of range"):
        analysis.attention_from(cache, queries=5)
    with pytest.raises(LensplugError, match="padding"):
        analysis.attention_from(cache, queries=0, attention_mask=torch.tensor([[0, 1, 1, 1, 1]]))
    result: Any = analysis.attention_from(cache)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.values = None
    assert "AttentionFrom(values [1, 1, 2, 1, 5]" in repr(result)
