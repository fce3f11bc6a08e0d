"""One layer's attention matrix: the cache's own numbers, with padding, in words, as a table."""

from __future__ import annotations

import math

import pytest
import torch
from support.caches import cache_of_patterns, causal_patterns, run, text_model, tokens

import lensplug
from lensplug import LensplugError, analysis
from lensplug.positions.groups import Groups

TEXTS = [["[CLS]", "ro", "##ll", "a", "[PAD]"], ["[CLS]", "a", "b", "c", "d"]]
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


def patterns():
    """Two layers, two examples, three heads; nobody looks at the padding at the end of the first."""
    made = causal_patterns(2, 2, 3, 5)
    return [pattern.clone() for pattern in made]


def padded_cache():
    return lensplug.cache_from_attentions(patterns(), attention_mask=MASK, tokens=TEXTS)


def test_it_is_the_layers_pattern():
    own = patterns()
    cache = cache_of_patterns(own)
    assert torch.equal(analysis.attention_matrix(cache, layer=1, head=2).values, own[1][:, 2])
    torch.testing.assert_close(analysis.attention_matrix(cache, layer=-2).values, own[0].mean(1))
    two = analysis.attention_matrix(cache, layer=0, head=[0, -1])
    torch.testing.assert_close(two.values, own[0][:, [0, 2]].mean(1))
    assert (two.layer, two.head, two.grouped) == (0, "0, 2", False)
    assert two.texts == (("",) * 5,) * 2
    assert "layer 0, mean of heads 0 and 2" in two.provenance.convention
    low = cache_of_patterns([pattern.bfloat16() for pattern in own])
    assert analysis.attention_matrix(low, layer=0).values.dtype == torch.float32


def test_padding_is_nan_and_in_no_table():
    result = analysis.attention_matrix(padded_cache(), layer=0)
    assert result.values[0, 4].isnan().all() and result.values[0, :, 4].isnan().all()
    torch.testing.assert_close(result.values[0, :4, :4], patterns()[0][0].mean(0)[:4, :4])
    assert not result.values[1].isnan().any()
    frame = result.to_dataframe()
    assert len(frame) == 4 * 4 + 5 * 5
    one = frame[(frame.example == 0) & (frame["query"] == 3) & (frame["key"] == 2)].iloc[0]
    assert (one.query_text, one.key_text) == ("a", "##ll")
    assert one.attention == pytest.approx(float(patterns()[0][0, :, 3, 2].mean()))
    other = frame[(frame.example == 1) & (frame["query"] == 4) & (frame["key"] == 1)].iloc[0]
    assert (other.query_text, other.key_text) == ("d", "a")


def test_words_sum_keys_average_queries_and_rows_sum_to_one():
    own = patterns()[1][:, 1]
    result = analysis.attention_matrix(padded_cache(), layer=1, head=1, groups="words")
    assert result.texts == (("[CLS]", "roll", "a"), tuple(TEXTS[1]))
    assert result.grouped and result.values.shape == (2, 5, 5)
    torch.testing.assert_close(result.values[0, :3, :3].sum(-1), torch.ones(3))
    torch.testing.assert_close(result.values[1].sum(-1), torch.ones(5))
    torch.testing.assert_close(result.values[0, 2, 1], own[0, 3, 1] + own[0, 3, 2])
    torch.testing.assert_close(result.values[0, 1, 0], (own[0, 1, 0] + own[0, 2, 0]) / 2)
    assert result.values[0, 3:].isnan().all() and result.values[0, :, 3:].isnan().all()
    frame = result.to_dataframe()
    assert len(frame) == 9 + 25
    roll = frame[(frame.example == 0) & (frame.key_text == "roll") & (frame.query_text == "a")].attention
    assert roll.item() == pytest.approx(float(own[0, 3, 1:3].sum()))


def test_groups_as_given():
    halves = Groups(torch.tensor([0, 0, 1, 1, 1]), ["left", "right"])
    cache = cache_of_patterns(causal_patterns(1, 1, 2, 5))
    one = analysis.attention_matrix(cache, layer=0, groups=halves)
    each = analysis.attention_matrix(cache, layer=0, groups=[halves])
    assert one.texts == (("left", "right"),) and torch.equal(one.values, each.values)
    torch.testing.assert_close(one.values[0], halves.pool(cache["pattern", 0][0].mean(0)[None])[0])


def test_it_needs_the_pattern_and_can_be_compared(tmp_path):
    _, cache = run(text_model(), tokens(1, 6), names_filter=analysis.attention_matrix.needs)
    result = analysis.attention_matrix(cache, layer=0)
    other = analysis.attention_matrix(cache, layer=0)
    assert analysis.compare(result, other).largest(1).attention_difference.item() == 0
    result.to_dataframe().to_csv(tmp_path / "attention.csv", index=False)
    assert len((tmp_path / "attention.csv").read_text().splitlines()) == 37


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 2}, "layer is 2, the model has layers 0 to 1"),
        ({"layer": 0, "head": 3}, "head is 3, the model has heads 0 to 2"),
        ({"layer": 0, "groups": "words"}, "the cache has none: give str_tokens="),
        ({"layer": 0, "groups": "regions"}, "groups is 'regions', expected 'words', a Groups, a list or None"),
        ({"layer": 0, "groups": [Groups(torch.zeros(3).long(), ["a"])]}, r"groups are of \[3\] positions"),
        ({"layer": 0, "groups": []}, r"groups are of \[\] positions, the cache is \[2, 5\]"),
        ({"layer": 0, "str_tokens": [["a"]]}, r"str_tokens is for \[1, 1\] positions"),
        ({"layer": 0, "attention_mask": torch.ones(2, 4).long()}, r"attention_mask has the shape \[2, 4\]"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(LensplugError, match=message):
        analysis.attention_matrix(cache_of_patterns(patterns()), **options)


def test_refuses_nan():
    with pytest.raises(LensplugError, match="holds NaN"):
        analysis.attention_matrix(cache_of_patterns([torch.full((1, 1, 3, 3), math.nan)]), layer=0)
