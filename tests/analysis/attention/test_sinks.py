"""Sinks: at real size and by hand, against plain loops; found in no tiny model that has none; kept or of patterns."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import Any

import pytest
import torch
from support.caches import cache_of_patterns, causal_patterns, padded, run, text_model, tokens
from transformer_lens import ActivationCache

import lensplug
from lensplug import LensplugError, analysis
from lensplug.analysis import Sinks, sinks
from lensplug.positions.modality_map import ModalityMap
from lensplug.reductions import Received
from lensplug.reductions.received import later_queries, measure
from lensplug.tiny.scenes import draw_scene

IMAGE = 48


def map_of(ids, mask=None):
    mask = torch.ones_like(ids) if mask is None else mask
    return ModalityMap.build(ids, mask, placeholder_ids={"image": IMAGE}, media_lengths={"image": [None] * len(ids)})


LENGTH, WIDTH, HEADS, SEEN = 3000, 1024, 3, (500, 1700)
"""Of a prompt of a large model, 98 % image, and where the sinks of the picture are."""
IDS = torch.cat([torch.full((20,), 1), torch.full((2940,), IMAGE), torch.full((40,), 2)])[None]


def large_stream(seed=0):
    """Of a trained model: the first position has two dimensions of thousands, two patches have some of it."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(1, LENGTH, WIDTH, generator=generator)
    x[0, 0, 700], x[0, 0, 150] = 1500.0, -900.0
    x[0, SEEN, 700] = torch.tensor([60.0, 45.0])
    x[0, 2000, 333] = 60.0  # large, in a dimension of its own
    x[0, 2400, 700] = 3.0
    return x


def large_pattern(seed=0):
    """Half of each row on the first position, 2 % on each sink of the picture, and a window of neighbours."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(1, HEADS, LENGTH, LENGTH, generator=generator).tril_()
    rows /= rows.sum(dim=-1, keepdim=True)
    rows *= 0.46
    at = torch.arange(LENGTH)
    rows[..., 0] += 0.5
    for position in SEEN:
        rows[..., position + 1 :, position] += 0.02
    rows[0, :, at[1:], at[1:] - 1] += 0.1  # the neighbour, of one query each
    rows[0, 0, 2900:, 2899] += 5  # one head, and few queries
    rows[0, :, -5:, -6] += 5  # all heads, and too few to tell
    return rows / rows.sum(dim=-1, keepdim=True)


def large_cache():
    cache = cache_of_patterns([large_pattern()])
    cache.cache_dict["blocks.0.hook_resid_pre"] = large_stream()
    return cache


def test_at_real_size_the_first_position_and_two_patches_are_sinks():
    result = sinks(large_cache(), map_of(IDS))
    assert result.positions == [[0, *SEEN]] and result.rules == ("massive", "dimensions", "attention")
    found = {position: result.found[0, 0, position].tolist() for position in (0, *SEEN)}
    assert found == {0: [True, True, True], 500: [False, True, True], 1700: [False, True, True]}
    median = large_stream()[0].abs().median()
    torch.testing.assert_close(result.activation_ratio[0, 0, 0], 1500 / median)
    assert result.activation_ratio[0, 0, 500] == pytest.approx(60 / float(median)) and 200 < 60 / median < 1000
    assert result.received[0, 0, 0] > 0.4 and 0.015 < result.received[0, 0, 500] < 0.03
    assert result.heads[0, 0, 2899] == pytest.approx(1 / 3) and math.isnan(result.heads[0, 0, -6])
    table = result.to_dataframe()
    assert table.position.tolist() == [0, *SEEN] and table.modality.tolist() == ["text", "image", "image"]
    assert table.rules.tolist() == ["massive+dimensions+attention", "dimensions+attention", "dimensions+attention"]


def test_how_much_of_the_image_lies_on_sinks_at_real_size():
    cache = large_cache()
    found = sinks(cache, map_of(IDS))
    share = analysis.sink_share(cache, map_of(IDS), sinks=found)
    row = large_pattern()[0, :, -1]
    expected = row[:, SEEN].sum(dim=-1) / row[:, 20:2960].sum(dim=-1)
    torch.testing.assert_close(share.of("image")[0, 0], expected, check_dtype=False)
    assert share.chance[0, 1] == pytest.approx(2 / 2940) and share.sinks[0].tolist() == [1, 2, 0, 0, 0]


def loops(pattern, mask, *, times, queries, min_queries):
    """The third rule, of one layer, one number at a time."""
    batch, heads, length, _ = pattern.shape
    received, in_heads = torch.full((2, batch, length), math.nan).unbind()
    for example in range(batch):
        real = [position for position in range(length) if mask[example, position]]
        for key in real:
            later = [query for query in real if query > key]
            if later:
                weights = [[float(pattern[example, head, query, key]) for query in later] for head in range(heads)]
                received[example, key] = sum(map(sum, weights)) / len(later) / heads
            if len(later) >= min_queries:
                count = 0
                for row in weights:
                    looks = [w > times / (real.index(query) + 1) for w, query in zip(row, later, strict=True)]
                    count += sum(looks) / len(later) > queries
                in_heads[example, key] = count / heads
    return received, in_heads


@pytest.mark.parametrize("left", [True, False])
def test_attention_from_everywhere_against_loops_with_padding(left):
    ids, mask = padded([tokens(1, 14)[0], tokens(1, 9, seed=1)[0]], left=left)
    cache = run(text_model(n_layers=2, seed=3), ids, mask)[1]
    cache.attention_mask = mask
    options: dict[str, Any] = {"times": 1.5, "queries": 0.5, "min_queries": 3}
    result = sinks(cache, map_of(ids, mask), rules="attention", heads=0.4, **options)
    for layer in range(2):
        received, in_heads = loops(cache["pattern", layer], mask, **options)
        torch.testing.assert_close(result.received[:, layer], received, equal_nan=True, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(result.heads[:, layer], in_heads, equal_nan=True)
        assert torch.equal(result.by_layer[:, layer], in_heads > 0.4)
    assert result.found.any() and not result.found.all()
    for example in range(2):  # alone, and without padding, the same
        own = mask[example].bool()
        alone = sinks(
            run(text_model(n_layers=2, seed=3), ids[example, own][None])[1], map_of(ids[example, own][None]),
            rules="attention", heads=0.4, **options,
        )  # fmt: skip
        assert torch.equal(alone.mask[0], result.mask[example, own])


def test_a_stream_by_hand():
    """Magnitudes 1, but for 8 at the first position and 6 at the third, of medians 1; the median norm is √39."""
    x = torch.ones(1, 5, 4)
    x[0, 0, 1], x[0, 2, 1], x[0, 3, 2] = -8.0, 6.0, 6.0
    cache = ActivationCache({"blocks.0.hook_resid_pre": x}, cache_of_patterns([torch.eye(5)[None, None]]).model)
    ids = torch.tensor([[1, 2, IMAGE, IMAGE, 3]])
    result = sinks(cache, map_of(ids), rules=["dimensions", "massive"], ratio=7, magnitude=7, tau=1.9)
    assert result.rules == ("massive", "dimensions")
    assert result.activation_ratio[0, 0].tolist() == [8, 1, 6, 6, 1]
    assert result.norm_ratio[0, 0].tolist() == pytest.approx([(67 / 39) ** 0.5, 2 / 39**0.5, 1, 1, 2 / 39**0.5])
    rms = [(67 / 4) ** 0.5, 1, (39 / 4) ** 0.5, (39 / 4) ** 0.5, 1]
    assert result.dimension[0, 0].tolist() == pytest.approx([8 / rms[0], 1, 6 / rms[2], 1 / rms[3], 1], rel=1e-5)
    assert result.found[0, 0].tolist() == [[1, 1], [0, 0], [0, 1], [0, 0], [0, 0]]
    assert result.received.isnan().all() and result.heads.isnan().all()
    # the largest magnitude must be reached too, and a first position without sink dimensions has none
    assert sinks(cache, map_of(ids), rules="massive", ratio=7, magnitude=9).positions == [[]]
    none = sinks(cache, map_of(ids), rules="dimensions", tau=2.1)
    assert none.positions == [[]] and none.dimension.isnan().all()


def test_padding_is_not_looked_at_and_the_stream_goes_by_both_names():
    x = torch.ones(1, 6, 4)
    x[0, :2] = 1e6
    x[0, 2, 1], x[0, 4, 1] = 8.0, 6.0
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    model = cache_of_patterns([torch.eye(6)[None, None]] * 2).model
    cache = ActivationCache({"blocks.0.hook_resid_pre": x, "blocks.0.hook_resid_post": x / 2}, model)
    ids = torch.tensor([[0, 0, 1, 2, IMAGE, 3]])
    result = sinks(cache, map_of(ids, mask), rules="massive", ratio=5, magnitude=4)
    assert result.positions == [[2, 4]] and result.activation_ratio[0, :, :2].isnan().all()
    assert result.by_layer[0].int().tolist() == [[0, 0, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0]]
    twice = sinks(cache, map_of(ids, mask), rules="massive", ratio=5, magnitude=4, min_layers=2)
    assert twice.positions == [[2]] and twice.in_words.endswith("in 2 layers or more")


def prompts(lens):
    pictures = [draw_scene(random.Random(seed), size=(48, 48)).image for seed in range(3)]
    questions = ["What is the color? Answer single word.", "What?", "Which color is it? Answer."]
    return lens.prepare(questions, images=[[picture] for picture in pictures])


def test_a_tiny_model_that_has_none_has_none_and_what_was_kept_says_the_same():
    lens = lensplug.tiny.llava_onevision()
    inputs = prompts(lens)
    _, cache = lens.run_with_cache(inputs, needs=[analysis.sinks])
    assert sinks(cache, inputs).positions == [[], [], []]
    options: dict[str, Any] = {"times": 2.0, "min_queries": 4, "heads": 0.3}
    _, kept = lens.run_with_cache(inputs, names_filter=["resid_pre"], keep=Received(times=2.0))
    expected, found = (sinks(one, inputs, **options) for one in (cache, kept))
    assert expected.found.any() and torch.equal(found.found, expected.found)
    torch.testing.assert_close(found.received, expected.received, equal_nan=True)
    with pytest.raises(LensplugError, match=r"keep=\[lensplug.reductions.Received\(times=20\)\]"):
        sinks(kept, inputs)
    kept.cache_dict["blocks.0.attn.hook_pattern"] = cache["pattern", 0]
    kept["pattern", 0] = cache["pattern", 1]  # what was kept of a pattern that is replaced goes
    assert "blocks.0.attn.received" not in kept.cache_dict


def test_an_encoder_counts_all_other_queries():
    pattern = torch.tensor([[0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.1, 0.9, 0.0]])[None, None]
    totals = measure(pattern, torch.ones(1, 3, dtype=torch.long), 0, 2.0, causal=False)
    torch.testing.assert_close(totals[0, 0], torch.tensor([[0.3, 0], [1.7, 2], [0.3, 0]]))
    assert later_queries(torch.ones(1, 3, dtype=torch.long), causal=False).tolist() == [[2, 2, 2]]


def test_results_combine_and_say_what_was_asked():
    cache = cache_of_patterns(causal_patterns(2, 1, 3, 8))
    modality = map_of(torch.tensor([[1, IMAGE, IMAGE, IMAGE, 2, 3, 4, 5]]))
    one = sinks(cache, modality, rules="attention", times=1.2, min_queries=2)
    both = Sinks.combine([one, one])
    assert both.positions == one.positions * 2 and both.count.tolist() == one.count.tolist() * 2
    assert one.thresholds == {"times": 1.2, "queries": 0.5, "heads": 0.5, "min_queries": 2.0, "min_layers": 1.0}
    assert one.provenance.options["times"] == "1.2"
    with pytest.raises(LensplugError, match="options"):
        Sinks.combine([one, sinks(cache, modality, rules="attention", times=1.3, min_queries=2)])


def test_what_the_rules_need_is_what_is_kept():
    lens = lensplug.tiny.llava_onevision()
    inputs = prompts(lens)
    _, cache = lens.run_with_cache(inputs, needs=[partial(analysis.sinks, rules="massive")])
    assert {name.split(".", 2)[2] for name in cache.keys()} == {"hook_resid_pre"}
    assert sinks(cache, inputs, rules="massive").positions == [[], [], []]


def with_rules(options) -> dict[str, Any]:
    return {"rules": "attention", **options}


def test_what_is_refused():
    cache = cache_of_patterns(causal_patterns(2, 1, 3, 8))
    modality = map_of(torch.tensor([[1, IMAGE, IMAGE, IMAGE, 2, 3, 4, 5]]))
    with pytest.raises(
        LensplugError, match=r"read 'blocks.0.hook_resid_pre'.*needs=\[analysis.sinks\].*rules='attention'"
    ):
        sinks(cache, modality)
    for options, message in (
        ({"rules": []}, "rules is empty, expected some of 'massive', 'dimensions', 'attention'"),
        ({"rules": "norm"}, "rules is 'norm', expected 'massive', 'dimensions'"),
        ({"queries": 1.0}, "queries is 1.0, expected a share from 0 to below 1"),
        ({"times": -1.0}, "times is -1.0, expected 0 or more"),
        ({"min_queries": 0}, "min_queries is 0, expected at least 1"),
    ):
        with pytest.raises(LensplugError, match=message):
            sinks(cache, modality, **with_rules(options))
    cache.query_positions = torch.tensor([[7]])
    with pytest.raises(LensplugError, match="keep='received'"):
        sinks(cache, modality, rules="attention")
    with pytest.raises(LensplugError, match="sinks is None, and without sinks no mass is on them"):
        analysis.sink_share(cache, modality, sinks=None)
    with pytest.raises(LensplugError, match="times is 0.0, expected a number above 0"):
        Received(times=0.0)
