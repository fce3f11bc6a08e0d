"""Figures of sinks, of their share of heads' masses, and of spatial entropy: the numbers that they draw."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.tiny.scenes import draw_scene


@pytest.fixture(scope="module")
def run() -> Any:
    lens = lensplug.tiny.llava_onevision()
    pictures = [draw_scene(random.Random(seed), size=(48, 48)).image for seed in range(2)]
    inputs = lens.prepare(["What is the color? Answer single word.", "What?"], images=[[one] for one in pictures])
    return inputs, lens.run_with_cache(inputs)[1]


def test_every_sink_has_a_mark_with_its_rules(run):
    inputs, cache = run
    result = analysis.sinks(cache, inputs, times=1.2, min_queries=4, heads=0.3)
    found = result.found.clone()
    found[1, 2, 40, 0] = found[1, 2, 40, 2] = True
    result = dataclasses.replace(result, found=found)
    marks = {
        (x, y): (trace.name, text)
        for trace in views.sinks(result, example=1).data
        if trace.type == "scatter" and trace.customdata is not None
        for x, y, text in zip(trace.x, trace.y, trace.customdata, strict=True)
    }
    expected = {(position, layer) for layer, position in result.by_layer[1].nonzero().tolist()}
    assert set(marks) == expected and marks[40, 2][0] == "massive + attention"
    assert all(f"layer {y}, position {x}" in text for (x, y), (_, text) in marks.items())
    padded = int((inputs.attention_mask[1] == 0).sum())
    strip = next(trace for trace in views.sinks(result, example=1).data if trace.type == "heatmap")
    assert padded and list(strip.x) == list(range(padded, inputs.shape[1]))


def test_without_sinks_there_is_an_empty_grid_that_says_so(run):
    inputs, cache = run
    fig = views.sinks(analysis.sinks(cache, inputs))
    assert "0 in all" in fig.layout.title.text and "0 of 78 image" in fig.layout.title.text.replace("<br><sub>", " ")
    with pytest.raises(LensplugError, match="example is 2, there are 2"):
        views.sinks(analysis.sinks(cache, inputs), example=2)


def test_shares_are_those_of_the_result(run):
    inputs, cache = run
    result = analysis.sink_share(cache, inputs, sinks=[0, 30])
    image = next(trace for trace in views.sink_share(result).data if trace.visible)
    mean = result.of("image").nanmean(dim=0)
    torch.testing.assert_close(torch.tensor(image.z), mean, atol=1e-5, rtol=0, check_dtype=False)
    with pytest.raises(LensplugError, match="modality is 'audio', this result has text, image"):
        views.sink_share(result, modality="audio")
    of_text = views.sink_share(analysis.sink_share(cache, inputs, sinks=[0]))
    at = next(index for index, trace in enumerate(of_text.data) if trace.visible)
    assert of_text.data[at].colorbar.title.text == "of text", "no image position is a sink"
    assert of_text.layout.updatemenus[0].active == at


def test_heads_that_localise_are_named(run):
    inputs, cache = run
    result = analysis.spatial_entropy(cache, inputs)
    fig = views.spatial_entropy(result, k=2)
    named = {f"{layer}.{head}" for layer, head, _ in result.localising(2)}
    assert {note.text for note in fig.layout.annotations} == named and len(named) == 2
    others, chosen = (trace for trace in fig.data if trace.type == "scatter")
    assert len(chosen.x) == 2 and len(others.x) == 34
    heat = next(trace for trace in fig.data if trace.type == "heatmap")
    torch.testing.assert_close(torch.tensor(heat.z), result.entropy.nanmean(dim=0).float(), atol=1e-5, rtol=0)
