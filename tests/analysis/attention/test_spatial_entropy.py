"""Spatial entropy: maps by hand, a flood fill written out, heads that localise, views and sinks."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from support.caches import cache_of_patterns

import lensplug
from lensplug import LensplugError, analysis
from lensplug.analysis import SpatialEntropy, spatial_entropy
from lensplug.analysis.attention.places_on_a_map import elbow, entropy_of_places
from lensplug.geometry import ImageGrid
from lensplug.positions.modality_map import ModalityMap
from lensplug.tiny.scenes import draw_scene

IMAGE = 48
BLOB = [[0, 0, 0, 0], [0, 4, 4, 0], [0, 0, 4, 0], [0, 0, 0, 0]]
TWO = [[4, 0, 0, 0], [4, 0, 0, 0], [0, 0, 0, 4], [0, 0, 0, 4]]
DIAGONAL = [[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 4]]
UNEVEN = [[9, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3]]


@pytest.mark.parametrize(
    ("cells", "expected", "places"),
    [
        (BLOB, 0.0, 1),
        (TWO, math.log(2), 2),
        (DIAGONAL, 0.0, 1),  # a corner is enough
        (np.ones((4, 4)), math.nan, 0),
        # the mean is 0.75: 8.25 and 2.25 of 10.5
        (UNEVEN, -sum(p * math.log(p) for p in (8.25 / 10.5, 2.25 / 10.5)), 2),
    ],
)
def test_maps_by_hand(cells, expected, places):
    entropy, count = entropy_of_places(np.array([cells, BLOB], dtype=float))
    np.testing.assert_allclose(entropy, [expected, 0.0], atol=1e-12)
    assert count.tolist() == [places, 1] and not np.signbit(entropy).any()


def by_flood_fill(cells, margin=0.0):
    """One map, with an explicit stack."""
    real = [(r, c) for r, row in enumerate(cells) for c, value in enumerate(row) if not math.isnan(value)]
    mean = sum(cells[place] for place in real) / len(real)
    left = {place: cells[place] - mean for place in real if cells[place] - mean > max(margin, 1e-6 * mean)}
    masses = []
    while left:
        stack, mass = [next(iter(left))], 0.0
        while stack:
            row, column = stack.pop()
            if (row, column) in left:
                mass += left.pop((row, column))
                stack += [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        masses.append(mass)
    shares = [mass / sum(masses) for mass in masses]
    return -sum(share * math.log(share) for share in shares) if masses else math.nan, len(masses)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_many_maps_are_as_each_alone_by_a_flood_fill(margin):
    maps = np.random.default_rng(0).gamma(0.3, size=(40, 9, 7))
    maps[np.random.default_rng(1).random(maps.shape) < 0.1] = math.nan
    entropy, places = entropy_of_places(maps, margin)
    expected = [by_flood_fill(one, margin) for one in maps]
    np.testing.assert_allclose(entropy, [value for value, _ in expected])
    assert places.tolist() == [count for _, count in expected] and places.max() > 5


def test_an_even_map_of_fp32_has_no_places():
    row = torch.full((1, 24 * 24), 1.0).softmax(dim=-1) * 0.731
    assert np.isnan(entropy_of_places(row.double().reshape(1, 24, 24).numpy())[0][0])


def test_the_elbow_is_furthest_from_the_chord():
    values = np.array([0.0, 0.01, 0.02, 0.03, 0.05, 0.5, 1.0])
    assert elbow(values) == elbow(np.random.default_rng(0).permutation(values)) == 0.05
    points = np.stack([np.arange(7), values], axis=1)
    chord = (points[-1] - points[0]) / np.linalg.norm(points[-1] - points[0])
    away = points - points[0] - ((points - points[0]) @ chord)[:, None] * chord
    assert np.linalg.norm(away, axis=1).argmax() == 4
    assert elbow(np.full(5, 0.2)) == 0.2 and elbow(np.array([0.3, 0.1])) == 0.1


def picture(side=4, view=0):
    """A picture of side x side cells of 10 pixels, each row ended by a newline token."""
    boxes, newline = [], []
    for row in range(side):
        boxes += [[10.0 * column, 10.0 * row, 10.0 * column + 10, 10.0 * row + 10] for column in range(side)]
        boxes.append([math.nan] * 4)
        newline += [False] * side + [True]
    views = torch.full((len(boxes),), view)
    return ImageGrid(torch.tensor(boxes), views, torch.tensor(newline), 10 * side, 10 * side)


def drawn(*maps, before=3):
    """A cache of one layer whose heads have these maps from the last position, and which position is what."""
    places = picture()
    ids = torch.tensor([[*range(1, before + 1), *[IMAGE] * len(places), 8, 9]])
    modality = ModalityMap.build(
        ids, torch.ones_like(ids), placeholder_ids={"image": IMAGE}, grids={(0, 0): places},
        media_lengths={"image": [[len(places)]]},
    )  # fmt: skip
    length = ids.shape[1]
    pattern = torch.eye(length).repeat(1, len(maps), 1, 1)
    for head, cells in enumerate(maps):
        row = torch.zeros(length)
        of_tokens = torch.zeros(len(places))
        of_tokens[~places.newline] = torch.tensor(cells, dtype=torch.float32).flatten()
        of_tokens[places.newline] = 3.0  # what ends a row is no cell
        row[before : before + len(places)] = of_tokens
        row[0] = 10
        pattern[0, head, -1] = row / row.sum()
    return cache_of_patterns([pattern]), modality


def test_a_head_s_map_is_that_of_the_grid():
    cache, modality = drawn(BLOB, TWO, UNEVEN)
    result = spatial_entropy(cache, modality)
    expected = [by_flood_fill(np.array(cells, dtype=float)) for cells in (BLOB, TWO, UNEVEN)]
    torch.testing.assert_close(result.entropy[0, 0], torch.tensor([value for value, _ in expected]), check_dtype=False)
    assert result.components.tolist() == [[[1, 2, 2]]]
    assert result.mass[0, 0].tolist() == pytest.approx([12 / 34, 16 / 38, 12 / 34])
    of_rows = spatial_entropy(analysis.attention_from(cache, queries=[-2, -1]), modality)
    torch.testing.assert_close(of_rows.entropy, result.entropy)
    assert of_rows.query.tolist() == result.query.tolist() == [24]
    # without the sink, the second place of the uneven map is the only one
    sink = 3 + 0
    without = spatial_entropy(cache, modality, sinks=[sink])
    assert without.entropy[0, 0, 2] == 0 and without.mass[0, 0, 2] == pytest.approx(3 / 34)
    assert "sinks (positions 3) left out" in without.provenance.convention


def test_heads_that_localise_over_examples():
    """Four heads: mass with one place, mass with one place in one example, mass with many, hardly any mass."""
    one, modality = drawn(BLOB, TWO, DIAGONAL, UNEVEN)
    result = spatial_entropy(one, modality)
    entropy = torch.tensor([[[0.0, 0.5], [1.5, 0.0]], [[0.1, 0.0], [1.5, 0.0]]])
    mass = torch.tensor([[[0.6, 0.5], [0.55, 0.02]], [[0.6, 0.5], [0.55, 0.02]]])
    many = dataclasses.replace(
        result, entropy=entropy.double(), mass=mass.double(), components=torch.ones(2, 2, 2).long(),
        query=torch.tensor([24, 24]),
    )  # fmt: skip
    assert many.elbow == 0.5
    assert many.localising(k=2, among=1) == [(0, 0, 0.5), (0, 1, 0.5)]
    assert many.localising(k=1, among=2) == [(0, 0, 1.0)]
    assert many.selected(among=3).tolist() == [[1.0, 1.0], [1.0, 0.0]]
    ties = dataclasses.replace(many, entropy=torch.zeros(2, 2, 2).double())
    assert ties.selected(among=1).tolist() == [[1.0, 0.0], [0.0, 0.0]]  # the larger mass
    table = many.to_dataframe()
    assert table.entropy.tolist() == pytest.approx([0.05, 0.25, 1.5, 0.0]) and table["count"].tolist() == [2] * 4


def test_tiles_are_one_grid_and_examples_are_their_own():
    lens = lensplug.tiny.llava_onevision()
    pictures = [draw_scene(random.Random(seed), size=(64, 96)).image for seed in range(2)]
    questions = ["What is the color? Answer single word.", "What?"]
    inputs = lens.prepare(questions, images=[[one] for one in pictures])
    _, cache = lens.run_with_cache(inputs)
    places = inputs.modality.image_grid(0, 1)
    assert places is not None
    for view in places.views:
        assert view != "all"
        result = spatial_entropy(cache, inputs, view=view)
        at_row, at_column = places.cells(view=view)
        is_cell = at_row >= 0
        positions = inputs.modality.image_positions(0, 1)[is_cell]
        boxes = places.boxes[is_cell]
        # rows and columns in the order of the boxes' corners
        tops, lefts = (sorted(set(boxes[:, i].tolist())) for i in (1, 0))
        assert at_row[is_cell].tolist() == [tops.index(top) for top in boxes[:, 1].tolist()]
        assert at_column[is_cell].tolist() == [lefts.index(left) for left in boxes[:, 0].tolist()]
        for layer in (0, 3):
            for head in (1, 4):
                cells = np.full((len(tops), len(lefts)), math.nan)
                row = cache["pattern", layer][1, head, -1][positions].double()
                cells[at_row[is_cell].numpy(), at_column[is_cell].numpy()] = row.numpy()
                value, count = by_flood_fill(cells)
                assert float(result.entropy[1, layer, head]) == pytest.approx(value, abs=1e-9)
                assert int(result.components[1, layer, head]) == count
    both = SpatialEntropy.combine([result, result])
    assert both.entropy.shape[0] == 4
    alone = lens.prepare(questions[1], images=[pictures[1]])
    _, cache_alone = lens.run_with_cache(alone, needs=["spatial_entropy"], query_positions=[-1])
    of_alone = spatial_entropy(cache_alone, alone)
    torch.testing.assert_close(
        of_alone.entropy[0], spatial_entropy(cache, inputs).entropy[1], equal_nan=True, atol=1e-4, rtol=1e-3
    )


def test_what_is_refused():
    cache, modality = drawn(BLOB)
    with pytest.raises(LensplugError, match="picture 0 of example 0 has no view 'tiles', but"):
        spatial_entropy(cache, modality, view="tiles")
    with pytest.raises(LensplugError, match="margin is -1.0, expected 0 or more"):
        spatial_entropy(cache, modality, margin=-1.0)
    with pytest.raises(LensplugError, match="query is 5, the result has 1"):
        spatial_entropy(analysis.attention_from(cache), modality, query=5)
    unknown = dataclasses.replace(modality, grids={})
    with pytest.raises(LensplugError, match="example 0 has no picture 0 whose places are known"):
        spatial_entropy(cache, unknown)
    tiles = dataclasses.replace(picture(), view=torch.tensor([0] * 10 + [1] * 10))
    with pytest.raises(LensplugError, match="base view and tiles are two grids"):
        tiles.cells(view="all")
    assert torch.equal(picture(view=1).cells(view="all")[0], picture().cells()[0])
