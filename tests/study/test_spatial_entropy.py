"""Spatial entropy as a measurement of a study: heads that localise, over the examples of many pictures."""

from __future__ import annotations

import random

import pandas as pd
import torch

import lensplug
from lensplug import analysis
from lensplug.study import Study
from lensplug.tiny.scenes import draw_scene

QUESTION = "What is the color? Answer single word."
COLORS = ("red", "blue", "red")


def test_rows_are_what_each_example_gives_by_itself(tmp_path):
    lens = lensplug.tiny.llava_onevision()
    for index, color in enumerate(COLORS):
        draw_scene(random.Random(index), size=((48, 48), (96, 48))[index % 2], color=color).image.save(
            tmp_path / f"{index}.png"
        )
    images = [str(tmp_path / f"{index}.png") for index in range(len(COLORS))]
    study = Study(tmp_path / "study", model="lensplug.tiny:llava_onevision", chunk=2)
    study.add(pd.DataFrame({"image": images, "prompt": QUESTION, "color": COLORS}))
    study.measure(analysis.spatial_entropy)
    study.measure(analysis.spatial_entropy, view="tiles", name="tiles")
    study.run(lens=lens, batch=2)
    assert study.failures().empty
    whole, tiles = study.result("spatial_entropy"), study.result("tiles")
    alone = []
    for index, row in enumerate(whole.examples.itertuples()):
        inputs = lens.prepare(QUESTION, images=list(row.images))
        _, cache = lens.run_with_cache(inputs, needs=[analysis.spatial_entropy], query_positions=[-1])
        of_view = analysis.spatial_entropy(cache, inputs), analysis.spatial_entropy(cache, inputs, view="tiles")
        for found, by_itself in zip((whole, tiles), of_view, strict=True):
            torch.testing.assert_close(found.result.mass[index], by_itself.mass[0], atol=1e-4, rtol=1e-3)
            same = found.result.components[index] == by_itself.components[0]  # but for cells at the mean
            assert same.double().mean() > 0.9
        alone.append(of_view[0])
    heads = [(layer, head) for layer, head, _ in whole.result.localising(k=1)]
    assert heads == [(layer, head) for layer, head, _ in analysis.SpatialEntropy.combine(alone).localising(k=1)]
    means = whole.mean(by="color", interval=None)
    assert means.labels == ("layer", "head") and set(means.groups) == {"red", "blue"}
