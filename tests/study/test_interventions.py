"""Measurements under edits: what the same edits give without a study, beside what is measured without them."""

from __future__ import annotations

import pytest
import torch
from support.models import QUESTION

import lensplug
from lensplug import LensplugError, Study, analysis
from lensplug.interventions import Knockout, Scale, SpliceSAE
from lensplug.interventions.edit import Edit
from lensplug.study.measurements import measurement_of

CUT = Knockout(from_="image", to="last", layers=[1])


def test_a_measurement_under_edits_is_the_analysis_under_them(three_colors, tmp_path):
    lens = lensplug.tiny.llava_onevision()
    study = Study(tmp_path / "cut", model="lensplug.tiny:llava_onevision")
    study.add(three_colors)
    both: list[Edit] = [CUT, Scale(heads=[(2, 0)], factor=0.0)]
    ways: dict[str, list[Edit]] = {"plain": [], "cut": [CUT], "both": both}
    for name, edits in ways.items():
        study.measure(analysis.logit_lens, positions=-1, name=name, interventions=edits)
    study.measure(analysis.grounding, medium="image", name="grounding", interventions=[CUT])
    study.run(lens=lens, batch=3)
    assert not len(study.failures())
    inputs = lens.prepare(three_colors.prompt.tolist(), images=[[image] for image in three_colors.image])
    settled = {}
    for name, edits in ways.items():
        with lens.intervene(*edits):
            _, cache = lens.run_with_cache(inputs)
        expected, found = analysis.logit_lens(cache, positions=-1), study.result(name).result
        order = study.result(name).examples["number"].tolist()
        torch.testing.assert_close(found.log_probability, expected.log_probability[order])
        settled[name] = found.log_probability
    assert not torch.allclose(settled["plain"], settled["cut"]) and not torch.allclose(settled["cut"], settled["both"])
    examples = [analysis.Example(QUESTION, row.target, images=[row.image]) for row in three_colors.itertuples()]
    with lens.intervene(CUT):
        grounded = analysis.grounding(lens, examples, "image")
    of_study = study.result("grounding").result
    torch.testing.assert_close(of_study.with_medium, grounded.with_medium[order], equal_nan=True)


def test_the_name_of_another_measurement_is_refused_with_its_edits(three_colors, tmp_path):
    study = Study(tmp_path / "names", model="lensplug.tiny:llava_onevision")
    study.add(three_colors)
    study.measure(analysis.logit_lens, positions=-1)
    with pytest.raises(LensplugError, match="under Knockout.*give this one a name"):
        study.measure(analysis.logit_lens, positions=-1, interventions=[CUT])


def test_measurements_without_edits_have_the_keys_that_they_had():
    plain = measurement_of("logit_lens", None, {"positions": -1})
    assert plain.key == measurement_of("logit_lens", None, {"positions": -1}, []).key
    assert plain.key != measurement_of("logit_lens", None, {"positions": -1}, [CUT]).key


def test_an_sae_is_no_part_of_a_folder(tmp_path):
    class Identity:
        cfg = None

        def encode(self, x):
            return x

        def decode(self, latents):
            return latents

        def __call__(self, x):
            return x

    with pytest.raises(LensplugError, match="cannot be written into a file"):
        measurement_of("logit_lens", None, {}, [SpliceSAE(Identity(), hook="blocks.0.hook_resid_post")])


def test_numbers_of_a_target_stand_beside_its_word(three_colors, tmp_path):
    """The logit lens's own target is what the model says last: under an edit, not the answer of the example."""
    lens = lensplug.tiny.llava_onevision()
    study = Study(tmp_path / "words", model="lensplug.tiny:llava_onevision")
    study.add(three_colors)
    study.measure(analysis.logit_lens, positions=-1, interventions=[CUT])
    study.run(lens=lens, batch=3)
    found = study.result(analysis.logit_lens)
    table = found.to_dataframe()
    assert set(table["target_of_example"]) == set(three_colors.target)
    texts = {row: text for row, (text,) in enumerate(found.result.target_texts)}
    order = found.examples["id"].tolist()
    assert all(texts[order.index(row.id)] == row.target for row in table.itertuples())
    assert table.attrs["interventions"] == [str(CUT)] and "Knockout" in repr(found)
