"""The lift of rollouts over uniform attention: against matrices made by hand, and of attention that is uniform."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from support.beside import given_of, wrapped
from support.caches import cache_of_patterns, causal_patterns, padded, run, text_model, tokens
from support.models import three_prompts

import lensplug
from lensplug import LensplugError
from lensplug.analysis import attention_flow, attention_rollout, gradient_rollout
from lensplug.reductions import RolloutProduct
from lensplug.reductions.mixing import Mixing


def allowed(length, *, window=None, mask=None, both=False):
    """Who may see whom, as 0 and 1."""
    at = np.arange(length)
    seen = np.ones((length, length), bool) if both else at[None] <= at[:, None]
    seen = seen if window is None else seen & (at[None] > at[:, None] - window)
    return seen if mask is None else seen & mask[None] & mask[:, None]


def spread(attention, seen, first):
    """Each row as much on the first position as it was, the rest evenly on the others that it may see."""
    rest = seen.copy()
    even = np.zeros_like(attention)
    if first is not None:
        rest[:, first] = False
        even[:, first] = attention[:, first]
    count = rest.sum(axis=1, keepdims=True)
    return even + np.where(count > 0, (attention.sum(1, keepdims=True) - even.sum(1, keepdims=True)), 0) * rest / (
        np.maximum(count, 1)
    )


def product(mixtures, residual):
    """The rollout of attention `[row pos]`, layer by layer."""
    result = np.eye(len(mixtures[0]))
    for attention in mixtures:
        keeps = np.where(attention.any(axis=1), residual, 1.0)[:, None]
        result = ((1 - keeps) * attention + keeps * np.eye(len(attention))) @ result
    return result


def by_hand(patterns, seen, *, first=0, residual=0.5, exclude_first=False):
    """The model's rollout and the baseline's, of one example `[row pos]`; patterns are `[head row pos]`."""
    own, even = [], []
    for layer, pattern in enumerate(patterns):
        attention = pattern.double().numpy().mean(axis=0)
        if exclude_first:
            attention[:, first] = 0
        total = attention.sum(axis=1, keepdims=True)
        attention = np.divide(attention, total, out=np.zeros_like(attention), where=total > 0)
        own.append(attention)
        may = (seen[layer] if isinstance(seen, list) else seen).copy()
        if exclude_first:
            may[:, first] = False
        even.append(spread(attention, may, None if exclude_first else first))
    return product(own, residual), product(even, residual)


def held(found, own, even, first=0):
    """A result's numbers of one example are those."""
    values, uniform, lift = found
    np.testing.assert_allclose(values.numpy(), own, atol=1e-6)
    np.testing.assert_allclose(uniform.numpy(), even, atol=1e-7, rtol=1e-5)
    known = ~lift.isnan().numpy()
    assert not known[:, first].any()
    np.testing.assert_array_equal(np.delete(known, first, axis=1), np.delete(even > 0, first, axis=1))
    np.testing.assert_allclose(lift.numpy()[known], (own / np.where(even > 0, even, 1))[known], rtol=1e-4)


OPTIONS = [{}, {"residual": 0.2}, {"residual": 0.0}, {"exclude_first": True}, {"exclude_first": True, "residual": 0.7}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_matrices_by_hand(options):
    patterns = causal_patterns(layers=4, batch=2, heads=3, length=9)
    result = attention_rollout(cache_of_patterns(patterns), **options)
    for example in range(2):
        own, even = by_hand([one[example] for one in patterns], allowed(9), **options)
        held([one[example] for one in (result.values, result.uniform, result.lift)], own, even)
    last = attention_rollout(cache_of_patterns(patterns), rows=[-1, 2], per_layer=True, **options)
    torch.testing.assert_close(last.lift, result.lift[:, [8, 2]], equal_nan=True, rtol=1e-5, atol=0)
    torch.testing.assert_close(last.lift_by_layer[:, -1], last.lift, equal_nan=True)
    short = attention_rollout(cache_of_patterns(patterns), rows=[-1, 2], layers=(0, 1), **options)
    torch.testing.assert_close(last.lift_by_layer[:, 1], short.lift, equal_nan=True, rtol=1e-5, atol=0)


def local(patterns, window):
    """A cache of which layers 0 and 2 see a window only."""
    kinds = [("local", "global")[layer % 2] for layer in range(len(patterns))]
    return cache_of_patterns(patterns, use_local_attn=True, attn_types=kinds, window_size=window)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_windows(window):
    patterns = causal_patterns(layers=3, batch=1, heads=2, length=12)
    near, far = allowed(12, window=window), allowed(12)
    for layer in (0, 2):
        patterns[layer] = patterns[layer] * torch.tensor(near)
        patterns[layer] = patterns[layer] / patterns[layer].sum(dim=-1, keepdim=True)
    result = attention_rollout(local(patterns, window))
    own, even = by_hand([one[0] for one in patterns], [near, far, near])
    held([one[0] for one in (result.values, result.uniform, result.lift)], own, even)


@pytest.mark.parametrize("options", [{}, {"exclude_first": True}], ids=str)
def test_attention_both_ways_is_held_against_plain_uniform_attention(options):
    patterns = [torch.rand(1, 2, 7, 7, generator=torch.Generator().manual_seed(i)).softmax(dim=-1) for i in range(3)]
    result = attention_rollout(cache_of_patterns(patterns, attention_dir="bidirectional"), **options)
    even = np.ones((7, 7)) / 7
    if options:
        even[:, 0], even[:, 1:] = 0, 1 / 6
    np.testing.assert_allclose(result.uniform[0].numpy(), product([even] * 3, 0.5), atol=1e-7)
    # Without its first position an encoder's first row still has what it keeps of itself.
    assert result.lift[0].isnan().any() == bool(options) and float(result.lift.nan_to_num(1).std()) > 0.01


@pytest.mark.parametrize("left", [True, False])
def test_a_padded_batch_equals_each_example_alone(left):
    model = text_model()
    rows = [tokens(1, n, seed=n)[0] for n in (5, 9)]
    ids, mask = padded(rows, left=left)
    every = attention_rollout(run(model, ids, mask)[1], attention_mask=mask).lift
    for example, row in enumerate(rows):
        own = mask[example].bool()
        alone = attention_rollout(run(model, row[None])[1]).lift[0]
        torch.testing.assert_close(every[example][own][:, own], alone, equal_nan=True, rtol=1e-4, atol=1e-5)
        assert bool(every[example][:, ~own].isnan().all())


def test_an_image_that_sees_itself_whole():
    """Gemma 3: attention over an image looks both ways, in a window of the words."""
    lens = wrapped("gemma3")
    inputs = lens.encode(given_of("gemma3"))
    _, cache = lens.run_with_cache(inputs)
    result = attention_rollout(cache)
    image = inputs.modality.mask("image").numpy()
    for example in range(2):
        mask = inputs.attention_mask[example].bool().numpy()
        whole = image[example][:, None] & image[example][None]
        seen = [(allowed(24, window=window, mask=mask) | whole) & mask[None] for window in (6, None, 6)]
        patterns = [cache["pattern", layer][example] for layer in range(3)]
        assert all(
            bool((pattern.numpy().sum(0) > 0)[~may].sum() == 0) for pattern, may in zip(patterns, seen, strict=True)
        )
        own, even = by_hand(patterns, seen, first=int(mask.argmax()))
        found = [one[example] for one in (result.values, result.uniform, result.lift)]
        np.testing.assert_allclose(found[1].numpy()[mask], even[mask], atol=1e-7)
        np.testing.assert_allclose(found[0].numpy()[mask], own[mask], atol=1e-6)


def uniform_attention(length):
    return torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]


def test_at_real_size_the_lift_of_uniform_attention_is_flat():
    """2,949 positions, 24 layers: its raw rollout gives the first patch 3.7e7 times the last."""
    length, layers = 2949, 24
    cache = cache_of_patterns([uniform_attention(length)[None, None]] * layers)
    result = attention_rollout(cache, rows=[-1, 1400])
    assert float(result.values[0, 0, 1] / result.values[0, 0, -2]) > 1e7
    np.testing.assert_allclose(result.lift[0, 0, 1:].numpy(), 1, atol=1e-4)
    np.testing.assert_allclose(result.lift[0, 1, 1:1401].numpy(), 1, atol=1e-4)
    assert bool(result.lift[0, 1, 1401:].isnan().all() and result.lift[0, :, 0].isnan().all())
    assert "THE LIFT IS FLAT" in result.beyond_order()


def test_at_real_size_random_attention_is_nothing_but_its_order():
    """A patch that every layer looks at three times as much stands out of the lift, and not of the rollout."""
    length, marked = 2949, 1500
    scores = 0.2 * torch.randn(length, length, generator=torch.Generator().manual_seed(0))
    scores[:, marked] += 1.1
    pattern = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(dim=-1)
    result = attention_rollout(cache_of_patterns([pattern[None, None]] * 8), rows=-1)
    assert int(result.lift[0, 0].nan_to_num(0)[:-1].argmax()) == marked
    assert int(result.values[0, 0, 1:-1].argmax()) + 1 != marked


def test_what_underflows_is_unknown_not_zero():
    cache = cache_of_patterns([uniform_attention(300)[None, None]] * 24)
    lift = attention_rollout(cache, rows=-1, residual=0.0).lift[0, 0]
    assert bool(lift[-1].isnan()), "1e-59 of the whole is less than single precision holds"
    assert int((~lift.isnan()).sum()) > 150
    np.testing.assert_allclose(lift[~lift.isnan()].numpy(), 1, atol=1e-4)


@pytest.mark.parametrize(
    "mixing", [Mixing(), Mixing("max", exclude_first=True, residual=0.3), Mixing(heads=((0, 1), (3, 2)))]
)
def test_the_lift_of_what_was_kept_is_that_of_the_whole(mixing):
    lens = lensplug.tiny.llava_onevision()
    batch = three_prompts(lens)
    options = {name: getattr(mixing, name) for name in ("head_fusion", "heads", "residual", "exclude_first")}
    _, cache = lens.run_with_cache(batch, names_filter=[], keep=RolloutProduct(mixing))
    _, whole = lens.run_with_cache(batch)
    for rows in (None, -1):
        kept, expected = (attention_rollout(one, rows=rows, **options).lift for one in (cache, whole))
        torch.testing.assert_close(kept, expected, equal_nan=True, rtol=1e-3, atol=1e-5)


def test_overlays_and_tables_have_the_lift_and_keep_the_raw():
    result = attention_rollout(cache_of_patterns(causal_patterns(layers=3, batch=1, heads=2, length=6)), rows=[-1, 3])
    drawn = result.by_position()["into position 5"]
    torch.testing.assert_close(drawn, result.lift[0, 0], equal_nan=True)
    assert torch.equal(result.by_position(raw=True)["into position 5"], result.values[0, 0])
    table = result.to_dataframe()
    entry = table[(table["row"] == 3) & (table["pos"] == 2)].iloc[0]
    assert entry["lift"] == pytest.approx(entry["value"] / entry["uniform"])
    assert "rank correlation with uniform attention: share " in result.beyond_order(row=0)


def test_a_lift_that_is_order_says_so():
    """Attention that fades with distance, whatever is there."""
    at = torch.arange(40.0)
    scores = -0.3 * (at[:, None] - at[None]).abs()
    pattern = scores.masked_fill(at[None] > at[:, None], -torch.inf).softmax(dim=-1)
    said = attention_rollout(cache_of_patterns([pattern[None, None]] * 6), rows=-1).beyond_order()
    assert "STILL FOLLOWS POSITION ORDER" in said
    assert "STILL" not in attention_rollout(cache_of_patterns(causal_patterns(4, 1, 1, 20)), rows=-1).beyond_order()


def test_a_gradient_rollout_has_nothing_of_a_rollout_of_shares():
    patterns = causal_patterns(layers=2, batch=1, heads=1, length=4)
    result = gradient_rollout(cache_of_patterns(patterns), cache_of_patterns(patterns))
    assert not [name for name in ("lift", "uniform", "by_layer", "residual", "even") if hasattr(result, name)]


def flow_by_hand(stack, row, sink):
    """The maximum flow by networkx, through mixtures from the last layer down."""
    graph = nx.DiGraph()
    graph.add_nodes_from([(len(stack), row), (0, sink)])
    for layer, mixture in enumerate(stack):
        for i, j in zip(*mixture.nonzero(), strict=True):
            graph.add_edge((layer + 1, i), (layer, j), capacity=mixture[i, j])
    return nx.maximum_flow_value(graph, (len(stack), row), (0, sink))


@pytest.mark.parametrize("options", [{}, {"exclude_first": True, "residual": 0.3}], ids=str)
def test_flows_are_held_against_the_flow_of_uniform_attention(options):
    patterns = causal_patterns(layers=3, batch=1, heads=2, length=7)
    result = attention_flow(cache_of_patterns(patterns), **options)
    may, residual = allowed(7), options.get("residual", 0.5)
    even = []
    for pattern in patterns:
        attention = pattern[0].double().numpy().mean(axis=0)
        seen = may.copy()
        if options:
            attention[:, 0], seen[:, 0] = 0, False
            total = attention.sum(axis=1, keepdims=True)
            attention = np.divide(attention, total, out=np.zeros_like(attention), where=total > 0)
        mixed = spread(attention, seen, None if options else 0)
        keeps = np.where(attention.any(axis=1), residual, 1.0)[:, None]
        even.append((1 - keeps) * mixed + keeps * np.eye(7))
    expected = [flow_by_hand(even, 6, sink) for sink in range(7)]
    assert result.uniform is not None and result.lift is not None
    np.testing.assert_allclose(result.uniform[0, 1:].numpy(), expected[1:], atol=1e-6)
    np.testing.assert_allclose(result.lift[0, 1:].numpy(), (result.values / result.uniform)[0, 1:].numpy())
    assert bool(result.lift[0, 0].isnan())
    assert torch.equal(result.by_position(raw=True)["into position 6"], result.values[0])
    torch.testing.assert_close(result.by_position()["into position 6"], result.lift[0], equal_nan=True)
    plain = attention_flow(cache_of_patterns(patterns), uniform=False, **options)
    assert torch.equal(plain.values, result.values) and "lift" not in plain.to_dataframe()
    with pytest.raises(LensplugError, match="no flow of uniform attention"):
        plain.lift  # noqa: B018


def test_the_lift_of_uniform_flows_is_one_also_in_groups():
    cache = cache_of_patterns([uniform_attention(12)[None, None]] * 3)
    for groups in (None, torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5])):
        lifted = attention_flow(cache, groups=groups).lift[0]
        np.testing.assert_allclose(lifted[~lifted.isnan()].numpy(), 1, atol=1e-6)
    assert "THE LIFT IS FLAT" in attention_flow(cache).beyond_order()
