"""What direct attribution says of the tiny trained models, whose pictures and sounds are known."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import torch

import lensplug
from lensplug import analysis
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import make_voice

QUESTION = "What is the color? Answer single word."
LIGHT: dict[str, Any] = {
    "needs": partial(analysis.direct_attribution, by="source"), "query_positions": [-1], "residual_positions": [-1],
}  # fmt: skip


def written(lens: Any, scenes: list[Any], target: tuple[str, str]) -> tuple[Any, analysis.DirectAttribution]:
    inputs = lens.prepare([QUESTION] * len(scenes), images=[[scene.image] for scene in scenes])
    _, cache = lens.run_with_cache(inputs, **LIGHT)
    return inputs, analysis.direct_attribution(cache, target, inputs.modality, by="source")


def test_the_color_of_a_picture_is_brought_from_it_and_from_where_it_is():
    lens = lensplug.tiny.llava_onevision()
    yellow, blue = (
        [draw_scene(random.Random(seed), size=(48, 48), color=color) for seed in range(8)]
        for color in ("yellow", "blue")
    )
    inputs, of_yellow = written(lens, yellow, ("Yellow", "Blue"))
    _, of_blue = written(lens, blue, ("Yellow", "Blue"))
    assert float(of_yellow.logit.min()) > 5 and float(of_blue.logit.max()) < -5
    for result in (of_yellow, of_blue):
        torch.testing.assert_close(result.total, result.logit, atol=1e-4, rtol=0)
    # Heads speak for yellow from the pictures that are yellow alone; the words are the same in both.
    from_image = [result.by_modality()["image"].sum(dim=(1, 2)) for result in (of_yellow, of_blue)]
    assert float(from_image[0].min()) > 0.3 and float((from_image[0] - from_image[1]).min()) > 0.5
    # Most of the logit is written by MLPs: heads alone would not tell the answer.
    mlps = [index for index, name in enumerate(of_yellow.other_names) if name.endswith("mlp_out")]
    assert float((of_yellow.others[:, mlps].sum(dim=1) / of_yellow.logit).min()) > 0.6
    hits = []
    for example, scene in enumerate(yellow):
        grid = inputs.modality.image_grid(example=example)
        row = of_yellow.by_position(example)["all"][inputs.modality.image_positions(example=example)]
        hits.append(float(grid.overlap(scene.box)[row.argmax()]) > 0)
    assert sum(hits) >= 7, hits


def test_when_a_voice_speaks_is_brought_from_the_sound():
    lens = lensplug.tiny.audio_llama()
    for place in ("early", "late"):
        voice = make_voice(random.Random(3), emotion="happy", place=place, transcript=True)
        inputs = lens.prepare(voice.prompt("time"), audio=[voice.audio])
        _, cache = lens.run_with_cache(inputs, **LIGHT)
        other = {"early": "Late", "late": "Early"}[place]
        result = analysis.direct_attribution(cache, (place.capitalize(), other), inputs.modality, by="source")
        torch.testing.assert_close(result.total, result.logit, atol=1e-4, rtol=0)
        masses = {name: float(mass.sum()) for name, mass in result.by_modality().items()}
        assert masses["audio"] > 1 and masses["audio"] > 4 * abs(masses["text"]), masses
