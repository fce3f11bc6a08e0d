"""The figure of probes has the result's own numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("sklearn")

from support.collected import collected, noise

from lensplug import analysis, views

LABELS = ["<b>", "dog"] * 20


def test_a_line_of_accuracies_with_bands_of_interval_and_control():
    found = analysis.probe(collected(noise(40, 3, 4)), LABELS, shuffles=3)
    figure = views.draw(found)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["accuracy"].x) == found.accuracy.tolist() and list(traces["accuracy"].y) == [0, 1, 2]
    low, high = found.interval
    assert list(traces["interval (95 %)"].x) == [*low.tolist(), *high.tolist()[::-1]]
    assert list(traces["chance"].x) == [0.5, 0.5]
    assert list(traces["shuffled labels, mean"].x) == found.shuffled_mean.tolist()
    assert max(traces["shuffled labels (90 %)"].x) <= float(found.shuffled.max())
    assert "&lt;b&gt;, dog" in figure.layout.title.text and "<b>" not in figure.layout.title.text
    assert figure.layout.xaxis.range[0] < min(traces["shuffled labels (90 %)"].x)


def test_without_control_there_is_no_band_of_it_and_layers_are_in_order():
    found = analysis.probe(collected(noise(40, 3, 4)), LABELS, shuffles=0)
    found = replace(found, layers=(7, 0, 3))
    traces = {trace.name: trace for trace in views.probe(found).data}
    assert set(traces) == {"accuracy", "interval (95 %)", "chance"}
    assert list(traces["accuracy"].y) == [0, 3, 7]
    assert list(traces["accuracy"].x) == found.accuracy[[1, 2, 0]].tolist()


def test_a_cell_for_each_head():
    found = analysis.probe(collected(noise(40, 2, 3, 4), "z"), LABELS, groups=range(40), shuffles=1)
    heat = views.draw(found).data[0]
    assert torch.equal(torch.tensor(heat.z, dtype=torch.float64), found.accuracy)
    assert heat.zmin == 0.5 and heat.customdata[1][2][1] == pytest.approx(float(found.interval[1][1, 2]))
    grouped = analysis.probe(collected(noise(40, 1, 4)), LABELS, groups=[i // 2 for i in range(40)], shuffles=0)
    assert "40 examples in 20 groups" in views.draw(grouped).layout.title.text
