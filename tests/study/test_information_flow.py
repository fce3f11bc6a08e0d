"""Information flow of a data set: what the analysis gives of the same examples, batch by batch."""

from __future__ import annotations

import torch
from support.models import QUESTION

import lensplug
from lensplug import Study, analysis

PATHS = [("image", "last"), ("question", "last")]


def test_it_is_the_analysis_of_each_example(three_colors, tmp_path):
    lens = lensplug.tiny.llava_onevision()
    study = Study(tmp_path / "flow", model="lensplug.tiny:llava_onevision")
    study.add(three_colors)
    study.measure(analysis.information_flow, paths=PATHS, draws=0)
    study.run(lens=lens, batch=2)
    assert not len(study.failures())
    found = study.result(analysis.information_flow)
    order = found.examples["number"].tolist()
    examples = [analysis.Example(QUESTION, row.target, images=[row.image]) for row in three_colors.itertuples()]
    expected = analysis.information_flow(lens, examples, paths=PATHS, draws=0, progress=False)
    torch.testing.assert_close(found.result.change, expected.change[order], atol=0.1, rtol=1e-3)
    assert found.result.paths == expected.paths
    means = found.mean(over="path").to_dataframe()
    assert len(means) == lens.model.cfg.n_layers
    by_hand = expected.change.mean(dim=(0, 1))
    found_means = torch.tensor(means["mean"].tolist(), dtype=by_hand.dtype)
    torch.testing.assert_close(found_means, by_hand, atol=0.1, rtol=1e-3)
