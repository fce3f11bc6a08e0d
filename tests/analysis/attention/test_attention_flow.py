"""Attention flow against worked numbers, networkx, and what flows must be."""

from __future__ import annotations

import math
import sys
from functools import partial

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.caches import ROTARY, cache_of_patterns, causal_patterns, padded, run, text_model, tokens
from torch import Tensor

from lensplug.analysis import attention_flow, attention_rollout, compare
from lensplug.analysis.attention.resolve_groups import GROUPS
from lensplug.errors import LensplugError
from lensplug.geometry import AudioTimeline, ImageGrid, VideoGrid
from lensplug.positions.modality_map import ModalityMap
from lensplug.reductions import names as hook_names

A1 = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
A2 = torch.tensor([[1, 0, 0], [0.25, 0.75, 0], [0.4, 0.4, 0.2]])
WORKED = torch.tensor([[1, 0, 0], [0.375, 0.75, 0], [0.5, 0.35, 0.6]], dtype=torch.float64)


def capacities(patterns: list[Tensor], residual: float = 0.5) -> list[np.ndarray]:
    """A' of each layer of a single example, in numpy, from the heads' mean in fp32 as the analysis makes it."""
    fused = [pattern[0].mean(dim=0).double().numpy() for pattern in patterns]
    return [(1 - residual) * a / a.sum(axis=1, keepdims=True) + residual * np.eye(len(a)) for a in fused]


def plain(stack: list[np.ndarray], row: int, sink: list[int]) -> float:
    """The maximum flow from a row into some input positions together, by networkx on the whole graph."""
    graph = nx.DiGraph()
    for layer, capacity in enumerate(stack):
        for i, j in zip(*capacity.nonzero(), strict=True):
            graph.add_edge((layer + 1, i), (layer, j), capacity=capacity[i, j])
    for position in sink:
        graph.add_edge((0, position), "sink")  # without a capacity: as much as comes
    if not all((0, position) in graph for position in sink):
        return 0.0
    return nx.maximum_flow_value(graph, (len(stack), row), "sink", flow_func=nx.flow.shortest_augmenting_path)


def bidirectional_patterns(layers: int, heads: int, length: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(2 * torch.randn(1, heads, length, length, generator=generator)).softmax(dim=-1) for _ in range(layers)]


def test_worked_numbers():
    cache = cache_of_patterns([A1[None, None], A2[None, None]])
    for row, expected in enumerate(WORKED):
        result = attention_flow(cache, row=row)
        torch.testing.assert_close(result.values[0], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(result.normalized[0], expected / expected.sum(), atol=1e-6, rtol=0)
        assert result.row.tolist() == [row] and not result.upper_bound and "exact" in result.provenance.convention


def test_layers_in_the_wrong_order_give_other_numbers():
    swapped = attention_flow(cache_of_patterns([A2[None, None], A1[None, None]])).values[0]
    assert float((swapped - WORKED[2]).abs().max()) > 0.01


@pytest.mark.parametrize("seed", range(50))
def test_equals_networkx(seed):
    rng = np.random.default_rng(seed)
    layers, length, heads = int(rng.integers(1, 7)), int(rng.integers(2, 17)), int(rng.integers(1, 4))
    causal = partial(causal_patterns, batch=1) if seed % 2 else bidirectional_patterns
    patterns = causal(layers=layers, heads=heads, length=length, seed=seed)
    residual = (0.5, 0.0, 0.3, 0.9)[seed % 4]
    row = int(rng.integers(length))
    found = attention_flow(cache_of_patterns(patterns), row=row, residual=residual).values[0].numpy()
    stack = capacities(patterns, residual)
    sinks = rng.permutation(length)[:6]  # networkx is slow
    np.testing.assert_allclose(found[sinks], [plain(stack, row, [sink]) for sink in sinks], rtol=1e-9, atol=1e-15)


shapes = {"layers": st.integers(1, 4), "length": st.integers(1, 8), "seed": st.integers(0, 10**6)}


@settings(max_examples=25, deadline=None)
@given(**shapes, causal=st.booleans(), residual=st.floats(0, 1))
def test_what_flows_must_be(layers, length, seed, causal, residual):
    made = partial(causal_patterns, batch=1) if causal else bidirectional_patterns
    patterns = made(layers=layers, heads=2, length=length, seed=seed)
    cache, row = cache_of_patterns(patterns), seed % length
    result = attention_flow(cache, row=row, residual=residual)
    values, stack = result.values[0].numpy(), capacities(patterns, residual)
    rollout = attention_rollout(cache, rows=row, residual=residual).values[0, 0].numpy()
    assert (values <= np.minimum(1, stack[0].sum(axis=0)) + 1e-12).all()  # what leaves the row, what can enter
    assert (values >= rollout - 1e-6).all()  # a rollout is a flow through the same pipes
    assert values[row] >= min(capacity[row, row] for capacity in stack) - 1e-12  # along itself
    if causal:
        assert not values[row + 1 :].any()
    shuffled = attention_flow(cache_of_patterns([p.flip(1) for p in patterns]), row=row, residual=residual)
    np.testing.assert_allclose(shuffled.values[0].numpy(), values, atol=1e-6)  # the order of heads
    at = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    moved = cache_of_patterns([p[:, :, at][..., at] for p in patterns], attention_dir="bidirectional")
    moved_row = int((at == row).nonzero())
    np.testing.assert_allclose(  # the order of positions
        attention_flow(moved, row=moved_row, residual=residual).values[0].numpy(), values[at.numpy()], atol=1e-6
    )


def test_attention_to_oneself_stays_where_it_is():
    cache = cache_of_patterns([torch.eye(6).expand(1, 2, 6, 6)] * 4)
    assert torch.equal(attention_flow(cache, row=3).values[0], torch.eye(6, dtype=torch.float64)[3])


def test_wide_stretches_of_sinks_share_one_graph():
    patterns = causal_patterns(layers=3, batch=1, heads=1, length=70)  # more than twice as many as CHUNKS
    found, stack = attention_flow(cache_of_patterns(patterns)).values[0].numpy(), capacities(patterns)
    sinks = [0, 4, 5, 33, 64, 69]
    np.testing.assert_allclose(found[sinks], [plain(stack, 69, [sink]) for sink in sinks], rtol=1e-9)


# With the seeds 2 and 10 every group can take all that leaves the row.
@pytest.mark.parametrize("seed", [seed for seed in range(14) if seed not in (2, 10)])
def test_merged_positions_bound_the_exact_flow_into_them_together(seed):
    rng = np.random.default_rng(seed)
    layers, length = int(rng.integers(2, 6)), int(rng.integers(6, 14))
    causal = partial(causal_patterns, batch=1) if seed % 2 else bidirectional_patterns
    # Sharp, so that not every group can take all that leaves the row.
    sharp = [pattern**6 for pattern in causal(layers=layers, heads=2, length=length, seed=seed)]
    patterns = [pattern / pattern.sum(dim=-1, keepdim=True) for pattern in sharp]
    groups = torch.from_numpy(rng.integers(0, length // 2, size=length))
    result = attention_flow(cache_of_patterns(patterns), groups=groups)
    exact = attention_flow(cache_of_patterns(patterns)).values[0]
    assert result.upper_bound and "upper bound" in result.provenance.convention
    joint = []
    for group in range(result.values.shape[1]):
        members = (result.groups[0] == group).nonzero()[:, 0].tolist()
        joint.append(plain(capacities(patterns), length - 1, members))
        assert float(result.values[0, group]) >= joint[-1] - 1e-12
        assert joint[-1] >= float(exact[members].max()) - 1e-12  # so each member's flow is bounded too
    assert min(joint) < 0.99 and float(result.values[0].max()) <= 1 + 1e-12


def test_inside_a_group_everything_can_go_everywhere():
    first, second = torch.eye(4), torch.eye(4)
    second[3], first[2] = torch.tensor([0, 1, 0, 0]), torch.tensor([1, 0, 0, 0])  # 3 looks at 1, and 2 at 0
    cache = cache_of_patterns([first[None, None], second[None, None]])
    assert attention_flow(cache).values.tolist() == [[0, 0.5, 0, 0.5]]
    assert attention_flow(cache, groups=torch.tensor([0, 1, 1, 2])).values.tolist() == [[0.5, 0.5, 0.5]]


def test_groups_by_hand():
    cache = cache_of_patterns([A1[None, None], A2[None, None]])
    result = attention_flow(cache, groups=torch.tensor([7, 7, 7]))  # the row is taken out
    # Into {0, 1}: the .4 that leave the row in the last layer, and .25 of the .6 that stay there.
    assert result.groups.tolist() == [[0, 0, 1]] and result.labels == (("group 7", "position 2"),)
    torch.testing.assert_close(result.values, torch.tensor([[0.65, 0.6]], dtype=torch.float64), atol=1e-6, rtol=0)
    whole = result.by_position(raw=True)["into position 2"]
    assert whole.tolist() == pytest.approx([0.65, 0.65, 0.6])
    shared = result.by_position(shared=True)["into position 2"]
    assert shared.tolist() == pytest.approx([0.325, 0.325, 0.6])
    assert result.by_position(normalized=True)["into position 2"].tolist() == pytest.approx([0.52, 0.52, 0.48])
    assert result.positions.tolist() == [[2, 1]]


def test_groups_of_one_change_nothing():
    cache = cache_of_patterns(causal_patterns(layers=3, batch=2, heads=2, length=7))
    apart = attention_flow(cache, groups=torch.arange(7))
    assert torch.equal(apart.values, attention_flow(cache).values) and not apart.upper_bound
    each = torch.stack([torch.arange(7), torch.zeros(7, dtype=torch.long)])  # a row for each example
    result = attention_flow(cache, groups=each)
    assert torch.equal(result.values[0], apart.values[0])
    assert result.values[1, 2:].isnan().all() and result.positions[1].tolist() == [6, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("form", [{}, ROTARY], ids=["gpt2", "rotary-rms"])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_padded_batch_equals_each_example_alone(form, left):
    model = text_model(**form)
    rows = [tokens(1, n, seed=n)[0] for n in (5, 9, 7)]
    ids, mask = padded(rows, left=left)
    _, cache = run(model, ids, mask)
    result = attention_flow(cache, attention_mask=mask)
    numbers = torch.arange(9) // 2
    merged = attention_flow(cache, attention_mask=mask, groups=numbers)
    for example, row in enumerate(rows):
        own = mask[example].bool()
        _, alone = run(model, row[None])
        torch.testing.assert_close(result.values[example][own], attention_flow(alone).values[0], atol=2e-6, rtol=0)
        assert result.values[example][~own].isnan().all() and (result.groups[example][~own] == -1).all()
        assert result.by_position(example, raw=True)[f"into position {int(own.nonzero()[-1])}"].isnan().equal(~own)
        expected = attention_flow(alone, groups=numbers[own]).values[0]
        torch.testing.assert_close(merged.values[example, : len(expected)], expected, atol=2e-6, rtol=0)
    assert sorted(set(result.to_dataframe().groupby("example").size())) == [5, 7, 9]
    torch.testing.assert_close(result.normalized.nansum(dim=1), torch.ones(3, dtype=torch.float64))
    cache.attention_mask = mask  # as the lens leaves it
    assert attention_flow(cache).values.nan_to_num(-1).equal(result.values.nan_to_num(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_patterns_flow_in_double_precision(dtype):
    patterns = [pattern.to(dtype) for pattern in causal_patterns(layers=4, batch=1, heads=2, length=9)]
    found, stack = attention_flow(cache_of_patterns(patterns)).values[0], capacities([p.float() for p in patterns])
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), [plain(stack, 8, [sink]) for sink in range(9)], rtol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"head_fusion": "max"},
        {"head_fusion": "value_weighted"},
        {"heads": [1]},
        {"heads": [(0, 1), (2, 0)]},
        {"discard": 0.5},
        {"exclude_first": True},
        {"residual": "measured"},
        {"layers": (1, 2)},
        {"layers": (-1, -1)},
    ],
    ids=str,
)
def test_options_are_those_of_the_rollout(options):
    _, cache = run(text_model(**ROTARY), tokens(2, 8))
    flow, rollout = attention_flow(cache, **options), attention_rollout(cache, rows=-1, **options)
    assert (flow.values >= rollout.values[:, 0] - 1e-6).all()
    assert (flow.values - attention_flow(cache).values).abs().max() > 1e-3
    assert flow.layers == rollout.layers and flow.provenance.convention.startswith(rollout.provenance.convention)
    if len(flow.layers) == 1:  # one layer: the flow is the row, as the rollout is
        torch.testing.assert_close(flow.values, rollout.values[:, 0].double(), atol=1e-6, rtol=0)


def test_runs_on_the_mean_over_heads_alone(lens, batch):
    _, whole = lens.run_with_cache(batch, names_filter=attention_flow.needs)
    _, cache = lens.run_with_cache(batch, keep="head_mean", names_filter=lambda name: False)
    assert set(cache.keys()) == {hook_names.head_mean(layer) for layer in range(lens.model.cfg.n_layers)}
    groups = {"groups": "modality", "modality": batch.modality}
    expected, found = attention_flow(whole, **groups), attention_flow(cache, **groups)
    torch.testing.assert_close(found.values, expected.values, atol=1e-6, rtol=0, equal_nan=True)
    assert found.labels == expected.labels
    with pytest.raises(LensplugError, match="attention_flow needs 'blocks.*hook_pattern'"):
        attention_flow(cache, heads=[0], **groups)
    cache.cache_dict[hook_names.head_mean(1)][0, 3, 2] = torch.nan
    with pytest.raises(LensplugError, match="holds NaN"):
        attention_flow(cache, **groups)


def test_runs_without_a_batch_axis(lens, inputs):
    for keep in ({"names_filter": attention_flow.needs}, {"keep": "head_mean", "names_filter": lambda name: False}):
        _, cache = lens.run_with_cache(inputs, **keep)
        expected = attention_flow(cache, row=20).values
        cache.remove_batch_dim()
        assert torch.equal(attention_flow(cache, row=20).values.nan_to_num(-1), expected.nan_to_num(-1))


def media(length: int = 330) -> ModalityMap:
    """Five words, an image of 8 x 8 patches with a newline behind each row, a sound, a video of 2 frames, padding."""
    labels = torch.zeros(1, length, dtype=torch.long)
    labels[:, 5:77], labels[:, 80:280], labels[:, 285:303] = 1, 3, 2
    labels[:, -2:] = 5
    index = torch.where((labels > 0) & (labels < 5), 0, -1)
    cells = torch.arange(8.0)
    x, y = cells.repeat(8, 1), cells[:, None].expand(8, 8)
    patches = torch.stack([x, y, x + 1, y + 1], dim=-1) * 10  # [row column 4]
    boxes = torch.cat([patches, torch.full((8, 1, 4), math.nan)], dim=1).reshape(72, 4)
    newline = boxes[:, 0].isnan()
    grid = ImageGrid(boxes, torch.zeros(72, dtype=torch.long), newline, 80, 80)
    seconds = torch.arange(201.0) / 10
    timeline = AudioTimeline(seconds[:-1], seconds[1:], 20.0)
    frame = torch.arange(18) // 9
    video = VideoGrid(patches[:3, :3].reshape(9, 4).repeat(2, 1), frame, torch.zeros(18, dtype=torch.bool), 30, 30)
    special = torch.zeros_like(labels, dtype=torch.bool)
    return ModalityMap(labels, special, index, {(0, 0): grid}, {(0, 0): video}, {(0, 0): timeline})


def test_media_are_merged_by_region_time_and_frame():
    modality = media()
    cache = cache_of_patterns(causal_patterns(layers=2, batch=1, heads=1, length=330))
    result = attention_flow(cache, groups="modality", modality=modality)
    assert int(result.row) == 327 and int(result.groups[0, 327]) == result.values.shape[1] - 1
    kinds = result.to_dataframe().set_index("label")
    assert 100 < len(kinds) <= GROUPS and result.groups[0, -2:].tolist() == [-1, -1]
    assert kinds.positions.sum() == 328
    assert (kinds[kinds.modality == "text"].positions == 1).all()
    image = kinds[kinds.modality == "image"]
    assert len(image) == 36 and not image.index.str.contains("newline").any()  # joined to the last patch of their row
    assert result.groups[0, 13] == result.groups[0, 12]
    assert [image.loc[f"[image·{at},{at}]"].positions for at in (1, 2, 6)] == [1, 4, 2]
    assert kinds[kinds.modality == "video"].positions.tolist() == [9, 9]
    assert len(kinds[kinds.modality == "audio"]) == 36
    assert kinds.loc["position 327"].positions == 1
    assert "by modality" in result.provenance.convention


def test_the_row_leaves_its_region():
    cache = cache_of_patterns(causal_patterns(layers=2, batch=1, heads=1, length=330))
    result = attention_flow(cache, row=16, groups="modality", modality=media())
    at = int(result.groups[0, 16])
    assert (result.groups[0] == at).sum() == 1 and result.labels[0][at] == "position 16"
    assert result.modalities[0][at] == "image"
    assert not result.values[0][result.groups[0, 100:300].unique()].any()  # behind the row


def test_what_takes_hours_is_refused_with_numbers_and_what_to_type():
    cache = cache_of_patterns(causal_patterns(layers=4, batch=1, heads=1, length=60))
    with pytest.raises(LensplugError, match="60 maximum flows through 5,550 edges, about 0 minutes, and may take") as e:
        attention_flow(cache, minutes=1e-4)
    assert "groups='modality', modality=inputs.modality" in str(e.value) and "or allow minutes=1." in str(e.value)
    few = attention_flow(cache, minutes=1e-4, groups=torch.arange(60) // 10)
    assert few.values.shape == (1, 7)
    with pytest.raises(LensplugError, match="fewer groups"):
        attention_flow(cache, minutes=1e-6, groups=torch.arange(60) // 10)
    # Only what the row reaches counts: the fourth position of a long prompt takes no time.
    assert attention_flow(cache, row=3, minutes=1e-4).values[0, :4].all()


def test_the_table_and_the_comparison():
    patterns = causal_patterns(layers=2, batch=2, heads=1, length=4)
    one = attention_flow(cache_of_patterns(patterns), groups=torch.tensor([0, 0, 1, 2]))
    table = one.to_dataframe()
    assert table[["label", "first", "last", "positions"]].values.tolist()[:2] == [
        ["group 0", 0, 1, 2],
        ["group 1", 2, 2, 1],
    ]
    assert table.flow.tolist() == one.values.flatten().tolist()
    assert table.groupby("example").normalized.sum().tolist() == pytest.approx([1, 1])
    other = attention_flow(cache_of_patterns(patterns[::-1]), groups=torch.tensor([0, 0, 1, 2]))
    difference = compare(one, other)
    assert set(difference.numbers) == {"flow", "normalized", "uniform", "lift"}
    assert difference.table.flow_difference.tolist() == pytest.approx((other.values - one.values).flatten().tolist())
    with pytest.raises(LensplugError, match="example is 2, there are 2"):
        one.by_position(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row": 4}, "position 4 is out of range"),
        ({"row": -5}, "position -5 is out of range"),
        ({"residual": 1.5}, "residual is 1.5, expected a weight from 0 to 1"),
        ({"head_fusion": "median"}, "'median', expected 'mean', 'max', 'min' or 'value_weighted'"),
        ({"heads": [3]}, "heads has 3, the model has"),
        ({"layers": (1, 0)}, "layers is .1, 0., expected the first and the last of 0 to 1"),
        ({"groups": "image"}, "groups is 'image', expected 'modality', a list, a tensor or None"),
        ({"groups": "modality"}, "give modality=inputs.modality"),
        ({"groups": torch.zeros(3, dtype=torch.long)}, r"groups have the shape \[3\], expected .* \[4\], or \[1, 4\]"),
        ({"groups": torch.zeros(2, 4, dtype=torch.long)}, r"groups have the shape \[2, 4\]"),
        ({"groups": torch.zeros(4)}, "groups are torch.float32, expected whole numbers"),
        ({"groups": torch.ones(4, dtype=torch.bool)}, "groups are torch.bool"),
        ({"groups": torch.tensor([0, -1, 0, 1])}, "position 1 is not padding and in no group"),
        ({"modality": media()}, r"the modality map is \[1, 330\], the cache \[1, 4\]"),
        ({"attention_mask": torch.ones(1, 5, dtype=torch.long)}, r"attention_mask has the shape \[1, 5\]"),
        ({"attention_mask": torch.zeros(1, 4, dtype=torch.long)}, "nothing but padding"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused(options, message):
    cache = cache_of_patterns(causal_patterns(layers=2, batch=1, heads=1, length=4))
    with pytest.raises(LensplugError, match=message):
        attention_flow(cache, **options)


def test_broken_and_missing_patterns_are_refused():
    patterns = causal_patterns(layers=2, batch=1, heads=1, length=4)
    patterns[0][0, 0, 2, 1] = torch.nan
    with pytest.raises(LensplugError, match="'blocks.0.attn.hook_pattern' holds NaN"):
        attention_flow(cache_of_patterns(patterns))
    cache = cache_of_patterns(causal_patterns(layers=2, batch=1, heads=1, length=4))
    del cache.cache_dict["blocks.0.attn.hook_pattern"]
    with pytest.raises(LensplugError, match="attention_flow needs 'blocks.0.attn.hook_pattern'.*attention_flow.needs"):
        attention_flow(cache)


def test_without_its_solver_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(LensplugError, match=r"pip install 'lensplug\[flow\]'"):
        attention_flow(cache_of_patterns(causal_patterns(layers=2, batch=1, heads=1, length=4)))
