"""Direct attribution as a measurement of a study: rows are what each example gives by itself."""

from __future__ import annotations

import random
from functools import partial

import pandas as pd
import pytest
import torch

import lensplug
from lensplug import LensplugError, analysis
from lensplug.study import Study
from lensplug.tiny.scenes import draw_scene

QUESTION = "What is the color? Answer single word."
COLORS = ("red", "blue", "red")


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


@pytest.fixture
def study(tmp_path) -> Study:
    for index, color in enumerate(COLORS):
        draw_scene(random.Random(index), size=((48, 48), (96, 48))[index % 2], color=color).image.save(
            tmp_path / f"{index}.png"
        )
    table = pd.DataFrame(
        {
            "image": [str(tmp_path / f"{index}.png") for index in range(len(COLORS))],
            "prompt": QUESTION,
            "color": [color.capitalize() for color in COLORS],
        }
    )
    study = Study(tmp_path / "study", model="lensplug.tiny:llava_onevision", chunk=2)
    study.add(table)
    return study


def test_rows_are_what_each_example_gives_by_itself(study, lens):
    study.measure(analysis.direct_attribution, target=study.column("color"), by="head")
    study.measure(analysis.direct_attribution, target=("Red", "Blue"), by="modality", name="modalities")
    study.measure(analysis.head_specialization)
    study.run(lens=lens, batch=2)
    assert study.failures().empty
    of_heads, of_modalities = study.result("direct_attribution"), study.result("modalities")
    assert of_heads.result.target_texts == tuple(of_heads.examples.color)
    for index, row in enumerate(of_heads.examples.itertuples()):
        inputs = lens.prepare(QUESTION, images=list(row.images))
        _, cache = lens.run_with_cache(inputs, needs=partial(analysis.direct_attribution, by="modality"))
        by_itself = analysis.direct_attribution(cache, row.color, by="head")
        torch.testing.assert_close(of_heads.result.values[index], by_itself.values[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(of_heads.result.total, of_heads.result.logit, atol=1e-4, rtol=0)
        pair = analysis.direct_attribution(cache, ("Red", "Blue"), inputs.modality, by="modality")
        assert of_modalities.result.modalities == pair.modalities and of_modalities.result.sources is None
        for name, found in of_modalities.result.by_modality().items():
            torch.testing.assert_close(found[index], pair.by_modality()[name][0], atol=2e-5, rtol=1e-4)
    means = of_modalities.mean(by="color", interval=None)
    assert means.labels == ("layer", "head", "modality") and set(means.groups) == {"Red", "Blue"}


def test_what_belongs_to_the_positions_of_one_prompt_is_refused(study):
    with pytest.raises(LensplugError, match="by='modality' says"):
        study.measure(analysis.direct_attribution, target="Red", by="source")
    with pytest.raises(LensplugError, match="one position of every example"):
        study.measure(analysis.direct_attribution, target="Red", position=[1, 2])
    with pytest.raises(LensplugError, match="needs target"):
        study.measure(analysis.direct_attribution)
