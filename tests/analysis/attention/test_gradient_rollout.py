"""Gradient-weighted rollout against worked numbers, a plain recursion in numpy, and what it may cost."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from support.caches import cache_of_patterns, causal_patterns
from torch.utils._python_dispatch import TorchDispatchMode

from lensplug import analysis, views
from lensplug.analysis import GradientRollout, attention_rollout, compare
from lensplug.errors import LensplugError

gradient_rollout = partial(analysis.gradient_rollout, exclude_first=False)
"""As the paper has it."""

A1 = torch.tensor(
    [[[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]], [[1, 0, 0], [0.9, 0.1, 0], [0.1, 0.1, 0.8]]]
)  # [head query key]
A2 = torch.tensor([[[1, 0, 0], [0.25, 0.75, 0], [0.4, 0.4, 0.2]], [[1, 0, 0], [0.6, 0.4, 0], [0.3, 0.5, 0.2]]])
G1 = torch.tensor([[[0, 0, 0], [1, -1, 0], [2, 1, -1]], [[0, 0, 0], [-1, 2, 0], [1, -2, 0.5]]])
G2 = torch.tensor([[[0.5, 0, 0], [2, -2, 0], [1, 1, -1]], [[-0.5, 0, 0], [0, 1, 0], [-1, 2, 3]]])
WORKED = torch.tensor([[1.25, 0, 0], [0.55, 1.32, 0], [0.7, 0.965, 1.56]])
WRONG_ORDER = torch.tensor([0.59, 1.02, 1.56])
"""The last row when layer 2 is taken for layer 1."""


def worked(*, first: tuple = (A1, G1), second: tuple = (A2, G2)):
    """Cache and gradients of the worked numbers."""
    return cache_of_patterns([first[0][None], second[0][None]]), cache_of_patterns([first[1][None], second[1][None]])


def random(layers: int = 4, batch: int = 2, heads: int = 3, length: int = 9, scale: float = 1.0, seed: int = 0):
    """Causal patterns, and gradients of either sign everywhere."""
    patterns = causal_patterns(layers=layers, batch=batch, heads=heads, length=length, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    gradients = [scale * torch.randn(pattern.shape, generator=generator) for pattern in patterns]
    return cache_of_patterns(patterns), cache_of_patterns(gradients)


def plain(cache, grads, *, normalize: bool = False) -> np.ndarray:
    """Equations 5, 6 and, after every layer, 8 and 9, in numpy, in double precision: R [example pos pos]."""
    layers = len(cache.cache_dict)
    patterns, gradients = (
        [held[f"blocks.{layer}.attn.hook_pattern"].double().numpy() for layer in range(layers)]
        for held in (cache, grads)
    )
    identity = np.eye(patterns[0].shape[-1])
    relevance = np.stack([identity] * len(patterns[0]))
    for pattern, gradient in zip(patterns, gradients, strict=True):
        relevance = relevance + np.maximum(gradient * pattern, 0).mean(axis=1) @ relevance
        if normalize:
            rest = relevance - identity
            total = rest.sum(axis=-1, keepdims=True)
            relevance = np.divide(rest, total, out=np.zeros_like(rest), where=total > 0) + identity
    return relevance


def test_worked_numbers():
    result = gradient_rollout(*worked())
    torch.testing.assert_close(result.values[0], WORKED, atol=1e-6, rtol=0)
    torch.testing.assert_close(result.relevance[0], WORKED - torch.eye(3), atol=1e-6, rtol=0)
    assert isinstance(result, GradientRollout) and result.rows.tolist() == [[0, 1, 2]]
    assert result.provenance.analysis == "gradient_rollout" and "not normalised" in result.provenance.convention


def test_layers_in_the_wrong_order_give_another_row():
    swapped = gradient_rollout(*worked(first=(A2, G2), second=(A1, G1))).values[0]
    torch.testing.assert_close(swapped[-1], WRONG_ORDER, atol=1e-6, rtol=0)
    mismatched = gradient_rollout(*worked(first=(A1, G2), second=(A2, G1))).values[0]
    assert float((mismatched - WORKED).abs().max()) > 0.1, "the last layer's gradients given to the first"


def test_layers_are_found_by_name_whatever_the_order_they_were_kept_in():
    cache, grads = worked()
    grads.cache_dict = dict(reversed(grads.cache_dict.items()))
    torch.testing.assert_close(gradient_rollout(cache, grads).values[0], WORKED, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient_rollout(cache, grads.cache_dict).values[0], WORKED, atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scale", [3.0, 1e-2])
def test_equals_the_plain_recursion(normalize, scale):
    cache, grads = random(layers=5, length=11, scale=scale)
    result = gradient_rollout(cache, grads, normalize=normalize)
    np.testing.assert_allclose(result.values.numpy(), plain(cache, grads, normalize=normalize), rtol=2e-6, atol=1e-7)
    assert result.values.dtype == torch.float32
    assert not bool(result.values.triu(1).any())  # causal stays causal


@pytest.mark.parametrize("normalize", [False, True])
def test_chosen_rows_are_rows_of_all(normalize):
    cache, grads = random()
    every = gradient_rollout(cache, grads, normalize=normalize)
    some = gradient_rollout(cache, grads, rows=[-1, 2, -9], normalize=normalize)
    torch.testing.assert_close(some.values, every.values[:, [8, 2, 0]], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(some.relevance, every.relevance[:, [8, 2, 0]], atol=1e-6, rtol=1e-6)
    assert some.rows.tolist() == [[8, 2, 0]] * 2
    assert gradient_rollout(cache, grads, rows=-1, normalize=normalize).rows.tolist() == [[8], [8]]


def left_rows(**options) -> int:
    """The most rows that stand on the left of a matrix product."""
    cache, grads = random(length=9)
    seen = []

    class Left(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default):
                seen.append(args[0].shape[-2])
            return func(*args, **(kwargs or {}))

    with Left():
        gradient_rollout(cache, grads, **options)
    return max(seen)


def test_one_row_costs_vector_matrix_products_only():
    assert left_rows(rows=-1) == 1
    assert left_rows(rows=-1, normalize=True) == left_rows() == 9


def test_normalised_by_hand_with_a_row_of_zeros():
    """Position 1 receives nothing in either layer, position 0 nothing in the first."""
    first = torch.tensor([[[1, 0, 0], [0.5, 0.5, 0], [0.25, 0, 0.75]]])  # cam: [0 0 0], [0 0 0], [.2 0 .6]
    second = torch.tensor([[[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.25, 0.25]]])  # cam: [.3 0 0], [0 0 0], [.5 .25 .25]
    of_first, of_second = (torch.tensor(rows)[None, :, None].expand(1, 3, 3) for rows in ([0, 0, 0.8], [0.3, 0, 1]))
    cache, grads = worked(first=(first, of_first), second=(second, of_second))
    relevance = gradient_rollout(cache, grads, normalize=True).relevance[0]
    # After layer 1 row 2 of R - I is [.25 0 .75]; in layer 2 cam R adds .5 [1 0 0] + .25 [0 1 0] + .25 [.25 0 1.75].
    last = torch.tensor([0.25 + 0.5 + 0.0625, 0.25, 0.75 + 0.4375]) / 2.25
    torch.testing.assert_close(relevance, torch.stack([torch.tensor([1.0, 0, 0]), torch.zeros(3), last]))


def test_rows_of_the_normalised_variant_sum_to_one_where_there_is_anything():
    cache, grads = random(scale=1e-6)
    for layer in range(4):
        grads.cache_dict[f"blocks.{layer}.attn.hook_pattern"][:, :, 3] = 0
    result = gradient_rollout(cache, grads, normalize=True)
    total = result.relevance.sum(dim=-1)
    assert not bool(total[:, 3].any()) and torch.equal(result.values[:, 3], torch.eye(9)[[3, 3]])
    torch.testing.assert_close(total[:, 4:], torch.ones(2, 5))
    assert "rows of R - I normalised in each layer" in result.provenance.convention


def test_tiny_gradients_are_not_lost_beside_the_identity():
    cache, grads = random(scale=1e-9)
    relevance = gradient_rollout(cache, grads, rows=-1).relevance
    scaled = gradient_rollout(cache, random(scale=1e-3)[1], rows=-1).relevance * 1e-6
    torch.testing.assert_close(relevance, scaled, rtol=1e-2, atol=0)  # linear, as long as products of cams are small
    assert bool((relevance[:, 0, -1] > 0).all())


def test_no_gradient_means_no_relevance():
    cache, grads = random(scale=0)
    result = gradient_rollout(cache, grads)
    assert torch.equal(result.values, torch.eye(9).expand(2, -1, -1)) and not bool(result.relevance.any())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("left", [True, False])
def test_padding_neither_gives_nor_receives(left, normalize):
    """Even if patterns and gradients are not zero there, as for queries that are padded at the right."""
    cache, grads = random(batch=1, length=6)
    real = slice(2, 6) if left else slice(0, 4)
    mask = torch.zeros(1, 6, dtype=torch.long)
    mask[:, real] = 1
    for pattern in cache.cache_dict.values():  # who is no padding looks at none
        pattern[:, :, real] *= mask
        pattern[:, :, real] /= pattern[:, :, real].sum(dim=-1, keepdim=True)
    padded = gradient_rollout(cache, grads, attention_mask=mask, normalize=normalize)
    inside = [
        cache_of_patterns([held[f"blocks.{layer}.attn.hook_pattern"][:, :, real, real] for layer in range(4)])
        for held in (cache, grads)
    ]
    alone = gradient_rollout(*inside, normalize=normalize)
    torch.testing.assert_close(padded.values[:, real, real], alone.values)
    outside = ~mask[0].bool()
    assert not bool(padded.relevance[:, outside].any() or padded.relevance[:, :, outside].any())
    assert float(gradient_rollout(cache, grads, normalize=normalize).relevance[:, outside].max()) > 0.01
    cache.attention_mask = mask  # as the lens leaves it
    last = gradient_rollout(cache, grads, rows=-1, normalize=normalize)
    assert last.rows.tolist() == [[5 if left else 3]]
    torch.testing.assert_close(last.values[:, :, real], alone.values[:, -1:])


def test_half_precision_is_multiplied_in_single():
    cache, grads = random(scale=1e-4)
    half = [cache_of_patterns([value.half() for value in held.cache_dict.values()]) for held in (cache, grads)]
    wide = [cache_of_patterns([value.half().float() for value in held.cache_dict.values()]) for held in (cache, grads)]
    assert torch.equal(gradient_rollout(*half).relevance, gradient_rollout(*wide).relevance)


def test_cache_and_gradients_are_not_changed():
    cache, grads = random()
    before = [[value.clone() for value in held.cache_dict.values()] for held in (cache, grads)]
    gradient_rollout(cache, grads)
    for held, values in zip((cache, grads), before, strict=True):
        assert all(torch.equal(*pair) for pair in zip(held.cache_dict.values(), values, strict=True))


def test_without_a_batch_axis():
    cache, grads = random(batch=1)
    expected = gradient_rollout(cache, grads).values
    torch.testing.assert_close(
        gradient_rollout(cache.remove_batch_dim(), grads.remove_batch_dim()).values, expected, atol=1e-6, rtol=0
    )


def test_table_and_picture_show_the_relevance():
    result = gradient_rollout(*worked(), rows=[-1, 1])
    table = result.to_dataframe()
    entry = table[(table["row"] == 2) & (table["pos"] == 2)]
    assert entry["value"].item() == pytest.approx(1.56) and entry["relevance"].item() == pytest.approx(0.56)
    fig = views.attention_rollout(result, row=0)
    np.testing.assert_allclose(np.asarray(fig.data[0].y), [0.7, 0.965, 0.56], atol=1e-6)
    assert fig.layout.yaxis.title.text == "relevance" and "gradient" in fig.layout.title.text
    np.testing.assert_allclose(np.asarray(views.draw(result).data[0].y), result.relevance[0, -1].numpy())
    plain_one = attention_rollout(worked()[0], rows=-1)
    assert "relevance" not in plain_one.to_dataframe()
    assert views.attention_rollout(plain_one, raw=True).layout.yaxis.title.text == "share"
    with pytest.raises(LensplugError, match="a gradient rollout has no lift. Leave raw out"):
        views.attention_rollout(result, raw=True)


def test_overlays_get_the_relevance_of_each_row():
    result = gradient_rollout(*worked(), rows=[-1, 1])
    rows = result.by_position()
    assert list(rows) == ["into position 2", "into position 1"]
    assert torch.equal(torch.stack(list(rows.values())), result.relevance[0])


def test_two_can_be_compared_but_not_with_attention_rollout():
    result = gradient_rollout(*worked())
    twice = dataclasses.replace(result, values=2 * result.values, relevance=2 * result.relevance)
    assert set(compare(result, twice).numbers) == {"value", "relevance"}
    with pytest.raises(LensplugError, match="a GradientRollout and a Rollout cannot be compared"):
        compare(result, attention_rollout(worked()[0]))
    with pytest.raises(LensplugError, match="different conventions"):
        compare(result, gradient_rollout(*worked(), normalize=True))


def test_says_what_it_needs():
    needs = analysis.gradient_rollout.needs
    assert needs("blocks.3.attn.hook_pattern") and not needs("blocks.3.hook_z")


@pytest.mark.parametrize(
    "options", [{}, {"normalize": True}, {"contributions": "negative"}, {"rows": [-1, 3]}], ids=str
)
def test_by_default_the_first_position_of_causal_attention_is_left_out(options):
    cache, grads = random()
    cut = {name: value.clone() for name, value in grads.cache_dict.items()}
    for gradient in cut.values():
        gradient[..., 0] = 0
    found, expected = analysis.gradient_rollout(cache, grads, **options), gradient_rollout(cache, cut, **options)
    torch.testing.assert_close(found.relevance, expected.relevance)
    assert not bool(found.relevance[..., 0].any()) and bool(gradient_rollout(cache, grads).relevance[..., 0].any())
    assert "first position left out" in found.provenance.convention
    assert "first position kept" in expected.provenance.convention


def test_padding_before_the_first_position_and_attention_both_ways():
    cache, grads = random(batch=1, length=6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    relevance = analysis.gradient_rollout(cache, grads, attention_mask=mask).relevance[0]
    assert not bool(relevance[:, 2].any()) and bool(relevance[3:, 3].any())
    cache.model.cfg.attention_dir = "bidirectional"
    both = analysis.gradient_rollout(cache, grads)
    assert "first position kept" in both.provenance.convention and bool(both.relevance[0, :, 0].any())


def test_signed_says_that_it_is_of_small_changes():
    said = gradient_rollout(*random(), contributions="signed").provenance.convention
    assert "infinitely small changes" in said


def broken(kind: str):
    cache, grads = random()
    name = "blocks.2.attn.hook_pattern"
    if kind == "no pattern":
        del cache.cache_dict[name]
    elif kind == "no gradient":
        del grads.cache_dict[name]
    elif kind == "other shape":
        grads.cache_dict[name] = grads.cache_dict[name][..., :-1]
    else:
        grads.cache_dict[name][0, 0, 0, 0] = float(kind)
    return cache, grads


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no pattern", "gradient_rollout needs 'blocks.2.attn.hook_pattern', and the cache does not hold it"),
        ("no gradient", r"gradient of 'blocks.2.attn.hook_pattern'.*lens.run_with_gradients\(inputs, target"),
        ("other shape", r"has the shape \[2, 3, 9, 8\], the pattern \[2, 3, 9, 9\]: give cache and grads of one run"),
        ("inf", "'blocks.2.attn.hook_pattern' holds NaN or infinity"),
        ("nan", "'blocks.2.attn.hook_pattern' holds NaN or infinity"),
    ],
)
def test_what_is_missing_or_broken_is_refused(kind, message):
    with pytest.raises(LensplugError, match=message):
        gradient_rollout(*broken(kind))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 9}, "position 9 is out of range"),
        ({"rows": []}, "rows is empty"),
        ({"attention_mask": torch.ones(1, 5, dtype=torch.long)}, r"attention_mask has the shape \[1, 5\]"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(LensplugError, match=message):
        gradient_rollout(*random(), **options)
