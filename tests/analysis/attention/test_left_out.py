"""Every analysis that reads attention, with and without sinks: against patterns that were edited by hand."""

from __future__ import annotations

import dataclasses
import random

import networkx as nx
import pytest
import torch
from support.caches import cache_of_patterns, causal_patterns

import lensplug
from lensplug import LensplugError, analysis
from lensplug.positions.modality_map import ModalityMap
from lensplug.tiny.scenes import draw_scene

IMAGE, LENGTH = 48, 9
IDS = torch.tensor([[1, 2, IMAGE, IMAGE, IMAGE, 3, IMAGE, 4, 5], [0, 0, 1, 2, IMAGE, IMAGE, 3, 4, 5]])
MASK = (IDS > 0).long()
SINKS = torch.zeros(2, LENGTH, dtype=torch.bool)
SINKS[0, 0] = SINKS[0, 3] = SINKS[1, 2] = SINKS[1, 5] = True
MODALITY = ModalityMap.build(IDS, MASK, placeholder_ids={"image": IMAGE}, media_lengths={"image": [None, None]})


def patterns(heads=1, layers=3):
    """Causal, the second example padded on the left."""
    made = causal_patterns(layers, 2, heads, LENGTH, seed=4)
    for pattern in made:
        pattern *= MASK[:, None, None] * MASK[:, None, :, None]
        pattern /= pattern.sum(dim=-1, keepdim=True).clamp(min=1e-30)
    return made


def edited(pattern):
    """Without the weights on sinks; rows that have others sum to 1, the rest are empty."""
    rest = pattern * ~SINKS[:, None, None]
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest / rest.sum(-1, keepdim=True).clamp(min=1e-30), 0.0)


def found(cache):
    """A result of `sinks` with this mask."""
    result = analysis.sinks(cache, MODALITY, rules="attention", min_queries=1)
    return dataclasses.replace(result, found=SINKS[:, None, :, None].expand(-1, result.found.shape[1], -1, -1).clone())


@pytest.fixture(params=["mask", "found", "list"])
def chosen(request):
    cache = cache_of_patterns(patterns(heads=2))
    return {"mask": SINKS, "found": found(cache), "list": SINKS.int().tolist()}[request.param]


def test_rows(chosen):
    made = patterns(heads=2)
    cache = cache_of_patterns(made)
    result = analysis.attention_from(cache, queries=-1, sinks=chosen)
    for layer in range(3):
        torch.testing.assert_close(result.values[:, layer, :, 0], edited(made[layer])[:, :, -1])
    assert "left out" in result.provenance.convention
    whole = analysis.attention_from(cache, queries=-1)
    torch.testing.assert_close(whole.values[:, 0, :, 0], made[0][:, :, -1])
    assert "left out" not in whole.provenance.convention


def test_a_row_that_is_wholly_on_sinks_is_empty():
    result = analysis.attention_from(cache_of_patterns(patterns()), queries=torch.tensor([[0], [2]]), sinks=SINKS)
    assert result.values.abs().max() == 0


def test_matrices(chosen):
    made = patterns(heads=2)
    result = analysis.attention_matrix(cache_of_patterns(made), layer=1, head=1, sinks=chosen)
    real = MASK.bool()
    expected = edited(made[1])[:, 1].masked_fill(~(real[:, :, None] & real[:, None]), torch.nan)
    torch.testing.assert_close(result.values, expected, equal_nan=True)


def test_received(chosen):
    made = patterns(heads=2)
    result = analysis.received_attention(cache_of_patterns(made), layer=2, head=0, scale="none", sinks=chosen)
    for example in range(2):
        for key in range(LENGTH):
            column = [float(made[2][example, 0, query, key]) for query in range(key, LENGTH) if MASK[example, query]]
            value = float(result.values[example, key])
            if not MASK[example, key] or SINKS[example, key]:
                assert value != value
            else:
                assert value == pytest.approx(sum(column) / len(column), rel=1e-5)


def rollout_by_hand(pattern_of_layers, residual=0.5):
    """The product of mixtures of patterns `[batch query key]`; a row that is empty keeps itself."""
    product = torch.eye(LENGTH, dtype=torch.float64).expand(2, -1, -1)
    for pattern in pattern_of_layers:
        pattern = pattern.double()
        keep = torch.where(pattern.sum(-1, keepdim=True) > 0, residual, 1.0)
        product = ((1 - keep) * pattern + keep * torch.eye(LENGTH)) @ product
    return product


def even_by_hand(made):
    """Attention that is spread evenly over what each row sees and is no sink and not the first position."""
    layers = []
    for pattern in made:
        even = torch.zeros(2, LENGTH, LENGTH)
        for example in range(2):
            first = int(MASK[example].argmax())
            for query in range(first, LENGTH):
                row = edited(pattern)[example, 0, query]
                may = [k for k in range(first + 1, query + 1) if not SINKS[example, k]]
                at_first = row[first]  # 0 where it is a sink
                even[example, query, first] = at_first
                for key in may:
                    even[example, query, key] = (row.sum() - at_first) / len(may)
        layers.append(even)
    return layers


@pytest.mark.parametrize("first_is_sink", [True, False])
def test_rollouts_and_their_lift(first_is_sink, monkeypatch):
    mask = SINKS.clone()
    if not first_is_sink:
        mask[0, 0] = mask[1, 2] = False
    monkeypatch.setitem(globals(), "SINKS", mask)
    made = patterns()
    result = analysis.attention_rollout(cache_of_patterns(made), sinks=mask)
    expected = rollout_by_hand([edited(pattern)[:, 0] for pattern in made])
    torch.testing.assert_close(result.values, expected, check_dtype=False)
    uniform = rollout_by_hand(even_by_hand(made))
    torch.testing.assert_close(result.uniform, uniform, check_dtype=False)
    assert result.lift[mask[:, None].expand_as(result.lift)].isnan().all() and not result.lift.isnan().all()
    assert analysis.attention_rollout(cache_of_patterns(made)).provenance.convention.count("first position kept") == 1


def test_flows(chosen):
    made = patterns(layers=2)
    result = analysis.attention_flow(cache_of_patterns(made), sinks=chosen, row=-1)
    for example in range(2):
        graph = nx.DiGraph()
        graph.add_nodes_from((layer, position) for layer in range(3) for position in range(LENGTH))
        for layer, pattern in enumerate(made):
            attention = edited(pattern)[example, 0].double()
            for query in range(LENGTH):
                keep = 0.5 if attention[query].sum() > 0 else 1.0
                for key in range(LENGTH):
                    weight = (1 - keep) * float(attention[query, key]) + keep * (query == key)
                    if weight > 0:
                        graph.add_edge((layer + 1, query), (layer, key), capacity=weight)
        for position in MASK[example].nonzero()[:, 0].tolist():
            flow = nx.maximum_flow_value(graph, (2, LENGTH - 1), (0, position))
            assert float(result.values[example, position]) == pytest.approx(flow, abs=1e-6)
    assert result.lift[SINKS].isnan().all()


def test_gradients(chosen):
    made = patterns(heads=2)
    cache, grads = cache_of_patterns(made), cache_of_patterns(patterns(heads=2)[::-1])
    result = analysis.gradient_rollout(cache, grads, sinks=chosen)
    without = {name: value * ~SINKS[:, None, None] for name, value in grads.cache_dict.items()}
    expected = analysis.gradient_rollout(cache, without, exclude_first=False)
    torch.testing.assert_close(result.values, expected.values)
    assert not torch.equal(result.values, analysis.gradient_rollout(cache, grads, exclude_first=False).values)


def test_heads(chosen):
    cache = cache_of_patterns(patterns(heads=2))
    for function in (analysis.head_specialization, analysis.modality_null):
        result, expected = (function(cache, MODALITY, sinks=sinks) for sinks in (chosen, SINKS))
        torch.testing.assert_close(result.mass, expected.mass, equal_nan=True)
    left = analysis.head_specialization(cache, MODALITY, sinks=chosen, exclude_sink=True)
    image = (IDS == IMAGE)[:, None, None]
    on_image = torch.stack([(edited(pattern)[:, :, -1] * image[:, 0]).sum(-1) for pattern in patterns(heads=2)], dim=1)
    torch.testing.assert_close(left.mass[..., left.modalities.index("image")], on_image, check_dtype=False)


@pytest.mark.parametrize(
    ("name", "old", "more"),
    [
        ("attention_rollout", "exclude_first", {}),
        ("attention_flow", "exclude_first", {"row": -1}),
        ("received_attention", "exclude_sink", {}),
    ],
)
def test_the_first_position_by_either_name(name, old, more):
    cache, function = cache_of_patterns(patterns(heads=2)), getattr(analysis, name)
    first = torch.tensor([[1, *[0] * 8], [0, 0, 1, *[0] * 6]])
    by_old, by_name, by_mask = (
        function(cache, **more, **each) for each in ({old: True}, {"sinks": "first"}, {"sinks": first})
    )
    assert by_old.provenance.convention == by_name.provenance.convention
    for other in (by_name, by_mask, function(cache, **more, sinks=[0])):
        torch.testing.assert_close(by_old.values, other.values, equal_nan=True)
    with pytest.raises(LensplugError, match=f"{old}=True leaves out the first position, and sinks says"):
        function(cache, **more, **{old: True}, sinks=[0])


def test_positions_count_from_what_is_not_padding():
    cache = cache_of_patterns(patterns())
    mask = torch.zeros(2, LENGTH, dtype=torch.long)
    mask[0, 3] = mask[1, 5] = mask[:, -2] = 1
    found, expected = (analysis.attention_from(cache, sinks=sinks).values for sinks in ([3, -2], mask))
    torch.testing.assert_close(found, expected)


def test_what_was_reduced_in_the_run_is_not_read_for_other_sinks():
    lens = lensplug.tiny.llava_onevision()
    inputs = lens.prepare("What is the color?", images=[draw_scene(random.Random(1), size=(48, 48)).image])
    _, kept = lens.run_with_cache(inputs, names_filter=[], keep=["rollout", "modality_mass"])
    with pytest.raises(LensplugError, match="keep='head_mean', of which attention_rollout"):
        analysis.attention_rollout(kept, rows=-1, sinks=[0, 30])
    with pytest.raises(LensplugError, match="run with query_positions="):
        analysis.head_specialization(kept, inputs, sinks=[0, 30])
    _, mean = lens.run_with_cache(inputs, names_filter=[], keep="head_mean")
    _, whole = lens.run_with_cache(inputs)
    found, expected = (analysis.attention_rollout(one, rows=-1, sinks=[0, 30]) for one in (mean, whole))
    torch.testing.assert_close(found.values, expected.values)


def test_what_is_refused():
    cache = cache_of_patterns(patterns())
    for sinks, message in (
        ([0, 0], r"sinks has a position twice, the list \[0, 0\]"),
        ([0, 8], "example 1 has 7 positions that are not padding"),
        ([], r"sinks has the shape \[0\]"),
        (
            torch.ones(1, LENGTH),
            r"sinks has the shape \[1, 9\], expected 'first', what analysis.sinks found",
        ),
        ("special", "sinks is 'special', expected 'first', a Sinks"),
    ):
        with pytest.raises(LensplugError, match=message):
            analysis.attention_from(cache, queries=-1, sinks=sinks)
    other = found(cache_of_patterns(patterns()))
    shorter = cache_of_patterns(causal_patterns(3, 1, 1, 5))
    with pytest.raises(LensplugError, match=r"sinks are of \[2, 9\] positions, this is of \[1, 5\]: find them"):
        analysis.attention_from(shorter, sinks=other)
    with pytest.raises(LensplugError, match="exclude_first=False and sinks both say"):
        analysis.gradient_rollout(cache, cache, exclude_first=False, sinks="first")
