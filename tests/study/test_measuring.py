"""What a study measures: analyses of a cache, and those that run the model; what it does not is refused."""

from __future__ import annotations

import json
import random
from functools import partial

import pytest
import torch
from support.models import QUESTION
from support.scene_studies import MODEL, by_hand

from lensplug import LensplugError, analysis
from lensplug.study import Study
from lensplug.tiny.scenes import draw_scene


def test_a_measurement_that_is_asked_for_later_is_another_pass(copied, lens):
    copied.measure(analysis.head_specialization, query=-2, name="before the last")
    copied.run(lens=lens)
    progress = copied.progress()
    assert progress.done.tolist() == [10, 10] and progress.measurements.iloc[1] == "before the last"
    assert not torch.equal(
        copied.result("before the last").result.query, copied.result("head_specialization").result.query
    )
    with pytest.raises(LensplugError, match="give this one a name"):
        copied.measure(analysis.head_specialization, query=-3)


def test_a_run_that_has_nothing_to_do_loads_nothing(copied):
    copied.run()  # would load the model in a second


def test_what_a_study_does_not_measure_is_refused(copied):
    with pytest.raises(LensplugError, match="does not measure 'attention_rollout'"):
        copied.measure(analysis.attention_rollout)
    with pytest.raises(LensplugError, match="takes no option 'position'"):
        copied.measure(analysis.logit_lens, position=3)
    with pytest.raises(LensplugError, match="query is 'last'"):
        copied.measure(analysis.head_specialization, query="last")
    with pytest.raises(LensplugError, match="neuron_activity needs domain"):
        copied.measure(analysis.neuron_activity, name="x")
    with pytest.raises(LensplugError, match="no column 'species'"):
        copied.column("species")
    with pytest.raises(LensplugError, match="give classes"):
        copied.measure(analysis.modality_ablation, modality="image")
    with pytest.raises(LensplugError, match="statistics over all examples"):
        copied.measure(analysis.modality_ablation, modality="image", method="mean", classes=["Red"])


def test_nothing_to_do_is_said(tmp_path, scenes):
    study = Study(tmp_path / "study", model=MODEL)
    with pytest.raises(LensplugError, match="no examples yet"):
        study.run()
    study.add_folder(scenes, prompt=QUESTION)
    with pytest.raises(LensplugError, match="nothing is measured yet"):
        study.run()
    study.measure(analysis.logit_lens)
    with pytest.raises(LensplugError, match="has no results yet"):
        study.result(analysis.logit_lens)
    with pytest.raises(LensplugError, match="is not measured in this study, but 'logit_lens'"):
        study.result("heads")


def test_analyses_that_run_the_model_are_measured_too(lens, tmp_path):
    rng = random.Random(1)
    scenes = [draw_scene(rng, size=(48, 48), color=color) for color in ("red", "blue", "green")]
    examples = [analysis.Example(QUESTION, scene.color.capitalize(), images=[scene.image]) for scene in scenes]
    study = Study(tmp_path / "study", model=MODEL)
    study.add(examples, color=[scene.color for scene in scenes])
    classes = ["Red", "Blue", "Green"]
    study.measure(analysis.grounding, medium="image")
    study.measure(analysis.modality_ablation, modality="image", method="remove", classes=classes)
    study.measure(analysis.logit_lens, target=study.column("target"))
    study.run(lens=lens)
    assert study.failures().empty
    order = study.examples.target.tolist()
    sorted_examples = sorted(examples, key=lambda one: order.index(one.answer))
    alone = analysis.grounding(lens, sorted_examples, "image")
    torch.testing.assert_close(study.result("grounding").result.difference, alone.difference)
    ablated = study.result("modality_ablation").result
    assert ablated.accuracy["with"] == 1.0 and ablated.classes == tuple(classes)
    assert study.result("modality_ablation").mean(number="right").table["mean"].iloc[0] == 1.0
    followed = study.result("logit_lens").result
    assert [texts[0] for texts in followed.target_texts] == order
    stored = json.loads((tmp_path / "study/study.json").read_text())
    assert stored["format"] == 1 and stored["model"] == MODEL
    assert len(list((tmp_path / "study/media").iterdir())) == 3


def test_neurons_are_deactivated_for_each_group(lens, tmp_path):
    """The same numbers as without a study, whatever the batch; pairs are written as JSON."""
    rng = random.Random(1)
    scenes = [draw_scene(rng, size=(48, 48), color=color) for color in ("red", "blue", "red")]
    examples = [analysis.Example(QUESTION, scene.color.capitalize(), images=[scene.image]) for scene in scenes]
    neurons = [(layer, neuron) for layer in (1, 3, 5) for neuron in range(100)]
    study = Study(tmp_path / "study", model=MODEL)
    study.add(examples, color=[scene.color for scene in scenes])
    with pytest.raises(LensplugError, match="never sees all of them"):
        study.measure(analysis.neuron_ablation, neurons=neurons, value="mean")
    with pytest.raises(LensplugError, match="neuron_ablation needs neurons"):
        study.measure(analysis.neuron_ablation)
    study.measure(analysis.neuron_ablation, neurons=neurons, draws=2)
    study.run(lens=lens, batch=2)
    assert study.failures().empty
    measured = study.result("neuron_ablation")
    alone = analysis.neuron_ablation(lens, examples, neurons, draws=2, batch_size=1).to_dataframe()
    assert measured.result.neurons == tuple(neurons)
    table = measured.mean(by="color", number="effect").table
    assert set(table.condition) == {"none", "chosen", "random"}
    for row in table.itertuples():
        of_group = alone[(alone.answer == row.group.capitalize()) & (alone.condition == row.condition)]
        assert row.mean == pytest.approx(of_group.effect.mean(), abs=1e-4)


def test_activations_are_collected_for_probes(lens, finished, tmp_path):
    study = Study(tmp_path / "study", model=MODEL, chunk=4)
    rows = finished.examples[["prompt", "images", "shape"]].rename(columns={"images": "image"})
    study.add(rows)
    study.measure(analysis.activations, hook="resid_mid", name="last")
    study.measure(analysis.activations, hook="mlp_out", pool="image", layers=[1, 4], name="patches")
    study.measure(analysis.modality_null, shuffles=20)
    study.run(lens=lens, batch=3)
    last, patches = study.result("last"), study.result("patches")
    assert len(last.files) == 3 and last.examples.id.tolist() == patches.examples.id.tolist()
    needs = [partial(analysis.activations, hook="resid_mid"), partial(analysis.activations, hook="mlp_out")]
    for index, (inputs, cache) in enumerate(by_hand(lens, last.examples, needs=needs)):
        alone = analysis.activations(cache, inputs.modality, hook="resid_mid")
        torch.testing.assert_close(last.result.vectors[index], alone.vectors[0], atol=1e-4, rtol=1e-4)
        pooled = analysis.activations(cache, inputs.modality, hook="mlp_out", pool="image", layers=[1, 4])
        torch.testing.assert_close(patches.result.vectors[index], pooled.vectors[0], atol=1e-4, rtol=1e-4)
    null = study.result(analysis.modality_null)
    assert null.result.modalities == ("text", "image") and not null.mean(number="z").table.empty
    pytest.importorskip("sklearn")
    probe = analysis.probe(patches.files, patches.examples["shape"].tolist(), folds=2, shuffles=2)
    assert probe.accuracy.shape == (2,)
    with pytest.raises(LensplugError, match="has no files of its own"):
        null.files.clear()
