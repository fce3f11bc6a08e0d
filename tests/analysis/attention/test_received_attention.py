"""Received attention against a loop written out, numbers by hand, padding on both sides, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from support.caches import ROTARY, cache_of_patterns, causal_patterns, padded, run, text_model, tokens

import lensplug
from lensplug import analysis
from lensplug.positions.modality_map import ModalityMap

A1 = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])


def one_head(matrix):
    return cache_of_patterns([matrix[None, None]])


def test_numbers_by_hand():
    """Rows over their maximum: [1], [1, 1], [.4, .6, 1]."""
    result = analysis.received_attention(one_head(A1))
    assert torch.allclose(result.matrix[0], torch.tensor([[1, 0, 0], [1, 1, 0], [0.4, 0.6, 1.0]]))
    assert result.values[0].tolist() == pytest.approx([2.4 / 3, 1.6 / 2, 1.0])
    assert result.count[0].tolist() == [3, 2, 1]
    raw = analysis.received_attention(one_head(A1), scale="none")
    assert raw.values[0].tolist() == pytest.approx([1.7 / 3, 0.8 / 2, 0.5])
    without = analysis.received_attention(one_head(A1), exclude_sink=True)
    assert math.isnan(without.values[0, 0]) and without.values[0, 1:].tolist() == pytest.approx([1.6 / 2, 1.0])


def test_without_the_sink_rows_are_scaled_by_the_largest_of_the_rest():
    """Rows without their first entry, over what is then their maximum: [], [1], [1/3, 1]."""
    matrix = torch.tensor([[1, 0, 0], [0.8, 0.2, 0], [0.6, 0.1, 0.3]])
    result = analysis.received_attention(one_head(matrix), exclude_sink=True)
    assert torch.allclose(result.matrix[0], torch.tensor([[0, 0, 0], [0, 1, 0], [0, 1 / 3, 1]]))
    assert result.values[0, 1:].tolist() == pytest.approx([2 / 3, 1.0]) and result.count[0].tolist() == [0, 2, 1]


def test_zeros_that_were_seen_count():
    """A later row may see an earlier position, also where it gives it nothing."""
    matrix = torch.tensor([[1, 0, 0], [1, 0, 0], [0.5, 0, 0.5]])
    result = analysis.received_attention(one_head(matrix))
    assert result.values[0].tolist() == [1.0, 0.0, 1.0] and result.count[0].tolist() == [3, 2, 1]
    assert result.visible is not None and result.visible[0].tolist() == torch.ones(3, 3).tril().bool().tolist()


ENCODER = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("over", "expected"), [("seen", [1 / 3, 0.5 / 3, 0.5]), ("rows", [1 / 3, 0.5 / 3, 0.5]), ("sum", [1, 0.5, 1.5])]
)
def test_an_encoder_sees_everything(over, expected):
    """A column that one row of three looks at was read as that row alone: 1.0 for 1/3."""
    cache = cache_of_patterns([ENCODER[None, None]], attention_dir="bidirectional")
    result = analysis.received_attention(cache, scale="none", over=over)
    assert result.values[0].tolist() == pytest.approx(expected)
    assert result.count[0].tolist() == [3, 3, 3]


def test_other_means_and_sums_by_hand():
    rows = analysis.received_attention(one_head(A1), scale="none", over="rows")
    assert rows.values[0].tolist() == pytest.approx([1.7 / 3, 0.8 / 3, 0.5 / 3]) and rows.count[0].tolist() == [3, 3, 3]
    total = analysis.received_attention(one_head(A1), scale="none", over="sum")
    assert total.values[0].tolist() == pytest.approx([1.7, 0.8, 0.5])
    assert total.provenance.convention == "layer 0, mean of all heads, rows as they are; sum over rows"
    patterns = causal_patterns(1, 1, 3, 5)
    heads = analysis.received_attention(cache_of_patterns(patterns), scale="none", head="sum", over="sum")
    assert torch.allclose(heads.values[0], patterns[0][0].sum(dim=(0, 1))) and heads.head == "sum"
    assert float(heads.values.sum()) == pytest.approx(15), "each of 3 heads has 5 rows that sum to 1"


def test_a_window_and_underflow():
    """Outside a window nothing is seen; within it what fp16 rounds to zero is."""
    window = {"use_local_attn": True, "window_size": 2, "attn_types": ["local"]}
    matrix = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.25, 0.75]]).half()
    result = analysis.received_attention(cache_of_patterns([matrix[None, None]], **window), scale="none")
    assert result.count[0].tolist() == [2, 2, 2, 1]
    assert result.values[0].tolist() == pytest.approx([1.0, 0.25, 0.375, 0.75])


@pytest.mark.parametrize("head", ["mean", 2, -1, [0, 2]])
@pytest.mark.parametrize("left", [True, False])
def test_against_a_loop(head, left):
    rows = [tokens(1, n, seed=n)[0] for n in (5, 9, 7)]
    ids, mask = padded(rows, left=left)
    model = text_model(**ROTARY)
    _, cache = run(model, ids, mask)
    result = analysis.received_attention(cache, layer=1, head=head, attention_mask=mask)
    pattern = cache["blocks.1.attn.hook_pattern"].numpy()
    chosen = range(3) if head == "mean" else [head] if isinstance(head, int) else head
    for example in range(3):
        at = np.flatnonzero(mask[example].numpy())
        matrix = np.mean([pattern[example, h] for h in chosen], axis=0)
        for key in range(mask.shape[1]):
            value = float(result.values[example, key])
            if key not in at:
                assert math.isnan(value)
                continue
            entries = [matrix[q, key] / max(matrix[q, k] for k in at) for q in at if q >= key]
            assert value == pytest.approx(np.mean(entries), abs=1e-6)
            assert int(result.count[example, key]) == len(entries)


def test_padding_changes_nothing():
    rows = [tokens(1, n, seed=n)[0] for n in (5, 9)]
    ids, mask = padded(rows, left=True)
    model = text_model(**ROTARY)
    together = analysis.received_attention(run(model, ids, mask)[1], attention_mask=mask)
    alone = analysis.received_attention(run(model, rows[0][None])[1])
    assert torch.allclose(together.values[0, -5:], alone.values[0], atol=1e-5)


MAP = ModalityMap.build(torch.tensor([[1, 90, 90, 2, 3]]), torch.ones(1, 5).long(), placeholder_ids={"audio": 90})
SHORT = ModalityMap.build(torch.ones(1, 3).long(), torch.ones(1, 3).long(), placeholder_ids={})
TEXTS = [["<s>", "<audio>", "<audio>", " how", "?"]]


def test_top_media_and_table():
    cache = cache_of_patterns(causal_patterns(2, 1, 3, 5))
    result = analysis.received_attention(cache, layer=-1, modality=MAP, str_tokens=TEXTS)
    assert result.layer == 1
    values = result.values[0]
    assert [at for at, _, _ in result.top(2)] == values.topk(2).indices.tolist()
    assert [(at, text) for at, text, _ in result.of("audio")] == [(1, "<audio>"), (2, "<audio>")]
    frame = result.to_dataframe()
    assert list(frame.columns) == ["example", "position", "token", "modality", "received", "rank", "entries"]
    assert sorted(frame["rank"]) == [1, 2, 3, 4, 5]
    table = result.table(k=1)
    assert set(table[table["rank"] > 1].modality) <= {"audio"} and (table.modality == "audio").sum() == 2
    with pytest.raises(
        lensplug.LensplugError, match=r"no position of example 0 is 'image': it has \['audio', 'text'\]"
    ):
        result.of("image")


def test_of_ties_the_earlier_position_is_first():
    """Each position looks at itself alone: all receive 1, from one row."""
    result = analysis.received_attention(one_head(torch.eye(40)), over="sum")
    assert [at for at, _, _ in result.top(5)] == [0, 1, 2, 3, 4]
    assert result.to_dataframe()["rank"].tolist() == list(range(1, 41))
    assert result.table(5).position.tolist() == [0, 1, 2, 3, 4]


def test_ranks_are_of_each_example_and_padding_has_none():
    ids, mask = padded([tokens(1, n, seed=n)[0] for n in (4, 7)], left=True)
    _, cache = run(text_model(**ROTARY), ids, mask)
    result = analysis.received_attention(cache, attention_mask=mask, exclude_sink=True)
    frame = result.to_dataframe()
    assert frame[frame.example == 0].position.tolist() == [4, 5, 6]
    assert frame[frame.example == 1].position.tolist() == [1, 2, 3, 4, 5, 6]
    for example in (0, 1):
        own = frame[frame.example == example].sort_values("rank")
        assert [at for at, _, _ in result.top(example=example)] == own.position.tolist()
        assert own.received.is_monotonic_decreasing


def test_the_convention_names_layer_heads_and_scale():
    cache = cache_of_patterns(causal_patterns(2, 1, 3, 5))
    made = analysis.received_attention(cache, layer=-1, head=-1, exclude_sink=True)
    assert made.head == "2" and made.provenance.convention == (
        "layer 1, head 2, rows scaled to maximum 1; first position left out"
    )
    several = analysis.received_attention(cache, head=[np.int64(0), -1])
    assert several.provenance.convention == "layer 0, mean of heads 0 and 2, rows scaled to maximum 1"
    raw = analysis.received_attention(cache, scale="none")
    assert raw.provenance.convention == "layer 0, mean of all heads, rows as they are"
    numpys = analysis.received_attention(cache, head=np.int64(1))
    assert torch.equal(numpys.values, analysis.received_attention(cache, head=1).values)


def test_the_result_cannot_be_changed():
    result: Any = analysis.received_attention(one_head(A1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.layer = 1


def test_csv(tmp_path):
    import pandas as pd

    cache = cache_of_patterns(causal_patterns(1, 1, 2, 5))
    result = analysis.received_attention(cache, modality=MAP, str_tokens=TEXTS)
    result.table(k=3).to_csv(tmp_path / "received.csv", index=False)
    again = pd.read_csv(tmp_path / "received.csv")
    assert list(again.token[again.modality == "audio"]) == ["<audio>", "<audio>"]


def test_half_precision_is_read_in_single():
    patterns = causal_patterns(1, 1, 2, 6)
    low = analysis.received_attention(cache_of_patterns([patterns[0].bfloat16()]))
    high = analysis.received_attention(cache_of_patterns([patterns[0].bfloat16().float()]))
    assert low.values.dtype == torch.float32 and torch.equal(low.values, high.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 2}, "layer is 2, the model has layers 0 to 1"),
        ({"head": 3}, "head is 3, the model has heads 0 to 2"),
        ({"head": []}, r"head is \[\], the model has heads"),
        ({"head": "max"}, "head is 'max', expected 'mean', 'sum', a whole number or a list"),
        ({"scale": "row"}, "scale is 'row', expected 'row-max' or 'none'"),
        ({"over": "column"}, "over is 'column', expected 'seen', 'rows' or 'sum'"),
        ({"str_tokens": [["a"]]}, r"str_tokens is for \[1, 1\] positions, the cache is \[1, 5\]"),
        ({"modality": SHORT}, r"modality is for \[1, 3\] positions"),
        ({"attention_mask": torch.ones(1, 4).long()}, r"attention_mask has the shape \[1, 4\]"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(lensplug.LensplugError, match=message):
        analysis.received_attention(cache_of_patterns(causal_patterns(2, 1, 3, 5)), **options)


def test_refuses_caches_that_cannot_be_read():
    nan = cache_of_patterns([torch.full((1, 1, 3, 3), math.nan)])
    with pytest.raises(lensplug.LensplugError, match="'blocks.0.attn.hook_pattern' holds NaN"):
        analysis.received_attention(nan)
    with pytest.raises(lensplug.LensplugError, match=r"shape \[1, 1, 1, 3\], expected \[batch, head, pos, pos\]"):
        analysis.received_attention(cache_of_patterns([torch.ones(1, 1, 1, 3)]))
    _, cache = run(text_model(**ROTARY), tokens(1, 4), names_filter="blocks.0.hook_resid_pre")
    with pytest.raises(lensplug.LensplugError, match="names_filter=analysis.received_attention.needs"):
        analysis.received_attention(cache)


def test_refuses_an_example_that_is_not_there():
    result = analysis.received_attention(one_head(A1))
    for ask in (result.top, lambda example: result.of("audio", example=example)):
        with pytest.raises(lensplug.LensplugError, match="example is 1, there are 1, counted from 0"):
            ask(example=1)
