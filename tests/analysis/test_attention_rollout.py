"""Attention rollout against worked numbers and a plain recursion in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from caches import ROTARY, cache_of_patterns, causal_patterns, padded, run, text_model, tokens

from lensplug.analysis import attention_rollout
from lensplug.errors import LensplugError

A1 = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
A2 = torch.tensor([[1, 0, 0], [0.25, 0.75, 0], [0.4, 0.4, 0.2]])
WORKED = torch.tensor([[1, 0, 0], [0.34375, 0.65625, 0], [0.31, 0.24, 0.45]])
"""(A2 + I)/2 times (A1 + I)/2."""


def plain(patterns: list[torch.Tensor], residual: float = 0.5, fusion: str = "mean") -> np.ndarray:
    """The recursion of the paper in numpy, in double precision: `[example row pos]`."""
    fuse = {"mean": np.mean, "max": np.max, "min": np.min}[fusion]
    length = patterns[0].shape[-1]
    product = np.broadcast_to(np.eye(length), (len(patterns[0]), length, length))
    for pattern in patterns:
        fused = fuse(pattern.double().numpy(), axis=1)
        fused = fused / fused.sum(axis=-1, keepdims=True)
        product = (residual * np.eye(length) + (1 - residual) * fused) @ product
    return product


def test_worked_numbers():
    result = attention_rollout(cache_of_patterns([A1[None, None], A2[None, None]]))
    torch.testing.assert_close(result.values[0], WORKED, atol=1e-6, rtol=0)
    assert result.rows.tolist() == [[0, 1, 2]]


def test_layers_in_the_wrong_order_give_other_numbers():
    swapped = attention_rollout(cache_of_patterns([A2[None, None], A1[None, None]])).values[0]
    assert float((swapped - WORKED).abs().max()) > 0.01


@pytest.mark.parametrize("residual", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_equals_the_plain_recursion(residual, fusion):
    patterns = causal_patterns(layers=5, batch=2, heads=4, length=11)
    result = attention_rollout(cache_of_patterns(patterns), residual=residual, head_fusion=fusion)
    np.testing.assert_allclose(result.values.numpy(), plain(patterns, residual, fusion), atol=1e-6)
    np.testing.assert_allclose(result.values.sum(dim=-1).numpy(), 1, atol=1e-6)
    assert not bool(result.values.triu(1).any())  # causal stays causal
    assert result.residual == residual and result.head_fusion == fusion
    assert fusion in result.provenance.convention and str(residual) in result.provenance.convention


def test_equals_the_plain_recursion_without_a_causal_mask():
    patterns = [torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(i)).softmax(dim=-1) for i in range(3)]
    result = attention_rollout(cache_of_patterns(patterns, attention_dir="bidirectional"))
    np.testing.assert_allclose(result.values.numpy(), plain(patterns), atol=1e-6)


def test_chosen_rows_are_rows_of_all():
    cache = cache_of_patterns(causal_patterns(layers=4, batch=2, heads=3, length=9))
    every = attention_rollout(cache).values
    torch.testing.assert_close(attention_rollout(cache, rows=-1).values, every[:, -1:], atol=1e-7, rtol=0)
    some = attention_rollout(cache, rows=[-1, 2, -9])
    torch.testing.assert_close(some.values, every[:, [8, 2, 0]], atol=1e-7, rtol=0)
    assert some.rows.tolist() == [[8, 2, 0]] * 2


def test_attention_to_oneself_stays_where_it_is():
    cache = cache_of_patterns([torch.eye(6).expand(1, 2, 6, 6)] * 4)
    assert torch.equal(attention_rollout(cache).values[0], torch.eye(6))


def test_the_order_of_heads_does_not_matter():
    patterns = causal_patterns(layers=3, batch=1, heads=4, length=8)
    shuffled = [pattern[:, torch.randperm(4, generator=torch.Generator().manual_seed(1))] for pattern in patterns]
    for fusion in ("mean", "max", "min"):
        one, other = (attention_rollout(cache_of_patterns(p), head_fusion=fusion) for p in (patterns, shuffled))
        torch.testing.assert_close(one.values, other.values, atol=1e-7, rtol=0)


@pytest.mark.parametrize("form", [{}, ROTARY], ids=["gpt2", "rotary-rms"])
def test_runs_on_a_cache_that_transformer_lens_made_alone(form):
    model = text_model(**form)
    _, cache = run(model, tokens(2, 10), names_filter=attention_rollout.needs)
    assert len(cache) == model.cfg.n_layers
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.cfg.n_layers)]
    assert float(patterns[0].std()) > 0.1  # far from uniform, or the order of layers would not matter
    np.testing.assert_allclose(attention_rollout(cache).values.numpy(), plain(patterns), atol=1e-6)


@pytest.mark.parametrize("form", [{}, ROTARY], ids=["gpt2", "rotary-rms"])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_padded_batch_equals_each_example_alone(form, left):
    model = text_model(**form)
    rows = [tokens(1, n, seed=n)[0] for n in (5, 9, 7)]
    ids, mask = padded(rows, left=left)
    _, cache = run(model, ids, mask)
    last = attention_rollout(cache, rows=-1, attention_mask=mask)
    every = attention_rollout(cache, attention_mask=mask)
    for example, row in enumerate(rows):
        alone = attention_rollout(run(model, row[None])[1]).values[0]
        own = mask[example].bool()
        torch.testing.assert_close(every.values[example][own][:, own], alone, atol=2e-6, rtol=0)
        torch.testing.assert_close(last.values[example, 0, own], alone[-1], atol=2e-6, rtol=0)
        assert not bool(every.values[example][own][:, ~own].any())
        assert int(last.rows[example, 0]) == int(own.nonzero()[-1])
    torch.testing.assert_close(every.values.sum(dim=-1), torch.ones(mask.shape), atol=2e-6, rtol=0)
    cache.attention_mask = mask  # as the lens leaves it
    assert torch.equal(attention_rollout(cache, rows=-1).values, last.values)


def test_half_precision_patterns_are_multiplied_in_single_precision():
    patterns = [pattern.bfloat16() for pattern in causal_patterns(layers=6, batch=1, heads=2, length=12)]
    result = attention_rollout(cache_of_patterns(patterns))
    assert result.values.dtype == torch.float32
    np.testing.assert_allclose(result.values.numpy(), plain(patterns), atol=1e-6)


def test_the_table_has_one_row_for_each_number():
    result = attention_rollout(cache_of_patterns(causal_patterns(layers=2, batch=2, heads=1, length=4)), rows=[0, -1])
    table = result.to_dataframe()
    assert len(table) == 2 * 2 * 4
    entry = table[(table["example"] == 1) & (table["row"] == 3) & (table["pos"] == 2)]
    assert entry["value"].item() == pytest.approx(float(result.values[1, 1, 2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_fusion": "median"}, "'median', expected one of 'mean', 'max', 'min'"),
        ({"residual": 1.5}, "residual is 1.5, expected a weight from 0 to 1"),
        ({"residual": -0.1}, "residual is -0.1"),
        ({"rows": 4}, "position 4 is out of range"),
        ({"rows": [0, -5]}, "position -5 is out of range"),
        ({"rows": []}, "rows is empty"),
        ({"attention_mask": torch.ones(1, 5, dtype=torch.long)}, r"attention_mask has the shape \[1, 5\]"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    cache = cache_of_patterns(causal_patterns(layers=2, batch=1, heads=1, length=4))
    with pytest.raises(LensplugError, match=message):
        attention_rollout(cache, **options)
