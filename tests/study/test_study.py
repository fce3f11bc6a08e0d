"""A study in this process: what is added, measured, written and read back; what is refused."""

from __future__ import annotations

import json
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from support.models import QUESTION

import lensplug
from lensplug import LensplugError, analysis
from lensplug.study import Study, chunk_files
from lensplug.study.batches import run_batch
from lensplug.study.worker import Worker
from lensplug.tiny.scenes import draw_scene
from lensplug.views import draw

MODEL = "lensplug.tiny:llava_onevision"
SIZES = ((48, 48), (96, 48), (96, 96))


@pytest.fixture(scope="session")
def lens():
    return lensplug.tiny.llava_onevision()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Ten pictures of three sizes, in a folder for each shape."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = random.Random(0)
    for index in range(10):
        shape = ("ring", "cross")[index % 2]
        path = folder / shape / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        draw_scene(rng, size=SIZES[index % 3], shape=shape).image.save(path)
    return folder


@pytest.fixture(scope="session")
def finished(lens, scenes, tmp_path_factory) -> Study:
    """A study of them, with three measurements."""
    study = Study(tmp_path_factory.mktemp("studies") / "finished", model=MODEL, chunk=4)
    study.add_folder(scenes, prompt=QUESTION, group="shape")
    study.measure(analysis.head_specialization, query=-1)
    study.measure(analysis.logit_lens, positions=-1)
    study.measure(analysis.neuron_activity, domain=study.column("shape"))
    study.run(lens=lens, batch=4)
    return study


@pytest.fixture
def copied(finished, tmp_path) -> Study:
    """A copy of it, to be changed."""
    shutil.copytree(finished.storage.place, tmp_path / "study")
    return Study(tmp_path / "study")


def by_hand(lens, examples: pd.DataFrame, **run):
    """Inputs and cache of each example, run by itself."""
    for row in examples.itertuples():
        inputs = lens.prepare(row.prompt, images=list(row.images))
        yield inputs, lens.run_with_cache(inputs, **run)[1]


def test_rows_are_what_each_example_gives_by_itself(lens, finished):
    heads, settled = finished.result(analysis.head_specialization), finished.result(analysis.logit_lens)
    examples = heads.examples
    assert len(examples) == 10 and set(examples.id) == set(finished.examples.id)
    needs = [analysis.head_specialization, analysis.logit_lens]
    for index, (inputs, cache) in enumerate(by_hand(lens, examples, needs=needs)):
        alone, said = analysis.head_specialization(cache, inputs.modality), analysis.logit_lens(cache)
        torch.testing.assert_close(heads.result.mass[index], alone.mass[0], atol=1e-5, rtol=1e-4)
        assert heads.result.modalities == alone.modalities and heads.result.views == alone.views
        torch.testing.assert_close(settled.result.log_probability[index], said.log_probability[0], atol=1e-4, rtol=1e-4)
        assert settled.result.top_texts[index][-1] == said.top_texts[0][-1]


def test_counts_are_those_of_all_examples(lens, finished):
    activity = finished.result(analysis.neuron_activity).result
    parts = [
        analysis.neuron_activity(cache, inputs.modality, domain=row.shape)
        for row, (inputs, cache) in zip(
            finished.examples.itertuples(),
            by_hand(lens, finished.examples, needs=[analysis.neuron_activity]),
            strict=True,
        )
    ]
    together = analysis.NeuronActivity.combine(parts)
    assert activity.domains == ("cross", "ring") and activity.examples == 10
    assert torch.equal(activity.positions, together.positions)
    assert (activity.fired - together.fired).abs().max() <= 2  # a number at 0 may fall on either side in a batch


def test_a_result_is_read_without_a_model_and_drawn_as_ever(finished):
    heads = Study(finished.storage.place).result("head_specialization")
    assert type(heads.result) is analysis.HeadSpecialization
    assert heads.result.by_layer().to_dataframe().shape[0] > 0
    assert draw(heads.result).data


def test_means_are_those_of_numpy(finished):
    heads = finished.result(analysis.head_specialization)
    means = heads.mean(by="shape", number="mass", replicates=50)
    shapes, mass = heads.examples["shape"].to_numpy(), heads.result.mass.flatten(1).numpy()
    for group in ("cross", "ring"):
        table = means.table[means.table.group == group]
        values = mass[shapes == group]
        np.testing.assert_allclose(table["mean"], values.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(table.standard_error, values.std(axis=0, ddof=1) / np.sqrt(len(values)), rtol=1e-9)
        assert (
            (table["count"] == 5).all() and (table.low <= table["mean"]).all() and (table["mean"] <= table.high).all()
        )
    everything = heads.mean(interval=None)
    assert everything.groups == ("all",) and everything.table.low.isna().all()
    layers = finished.result(analysis.logit_lens).mean(number="target_on_top", interval="normal")
    assert layers.labels == ("entry",) and layers.table["mean"].iloc[-1] == 1.0


def test_means_by_layer_are_those_of_the_result_in_memory(finished):
    heads = finished.result(analysis.head_specialization)
    of_layers = heads.mean(over="head")
    assert of_layers.labels == ("layer", "modality") and of_layers.number == "mass"
    by_layer = heads.result.by_layer().to_dataframe().query("measure == 'mass'").set_index(["layer", "name"])
    table = of_layers.table.set_index(["layer", "modality"])
    found = by_layer.loc[table.index]
    np.testing.assert_allclose(table["mean"], found["mean"], rtol=1e-5)
    np.testing.assert_allclose(table.standard_error, found.standard_error, rtol=1e-4)
    compared = heads.difference("ring", "cross", by="shape", over="head", permutations=20)
    assert len(compared.table) == 6 * 7 and "head" not in compared.table
    with pytest.raises(LensplugError, match="no label 'heads' to average over, but layer, head, modality"):
        heads.mean(over="heads")


def test_the_mean_of_settled_is_the_share_of_examples_that_have_settled(finished):
    settled = finished.result(analysis.logit_lens)
    layers = settled.result.settled_layer[:, 0].numpy()
    shares = settled.mean(number="settled", interval=None).table.set_index("entry")["mean"]
    assert shares.tolist() == [float((layers <= layer).mean()) for layer in range(-1, 6)]


def test_a_table_of_all_examples(finished):
    heads = finished.result(analysis.head_specialization)
    table = heads.to_dataframe()
    assert len(table) == 10 * 6 * 6 * 3 and set(table["shape"]) == {"ring", "cross"}
    by_hand = table.groupby(["shape", "layer", "head", "modality"]).mass.mean()
    means = heads.mean(by="shape", number="mass", interval=None).table
    rows = means.set_index(["group", "layer", "head", "modality"])["mean"]
    np.testing.assert_allclose(by_hand.sort_index().to_numpy(), rows.sort_index().to_numpy(), rtol=1e-12)


def test_groups_are_compared(finished):
    heads = finished.result(analysis.head_specialization)
    found = heads.difference("ring", "cross", by="shape", permutations=200)
    shapes, mass = heads.examples["shape"].to_numpy(), heads.result.mass.flatten(1).numpy()
    expected = mass[shapes == "ring"].mean(axis=0) - mass[shapes == "cross"].mean(axis=0)
    every = found.table.set_index(list(found.labels)).difference.dropna()
    np.testing.assert_allclose(every.to_numpy(), expected, atol=1e-12)
    assert not found.paired
    same = heads.compare(heads)
    assert same.paired and (same.table.difference.dropna() == 0).all()
    with pytest.raises(LensplugError, match="no example with results has shape 'star'"):
        heads.difference("star", "cross", by="shape")


def test_adding_again_changes_nothing_and_more_is_new_chunks(copied, lens, scenes, tmp_path):
    assert copied.add_folder(scenes, prompt=QUESTION, group="shape") == 0
    before = {path: path.read_bytes() for path in sorted((Path(copied.storage.place) / "results").rglob("*.parquet"))}
    picture = tmp_path / "more.png"
    draw_scene(random.Random(9), size=(48, 48)).image.save(picture)
    assert copied.add(pd.DataFrame({"prompt": [QUESTION], "image": [str(picture)], "shape": ["ring"]})) == 1
    copied.run(lens=lens)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert copied.progress().done.tolist() == [11]


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


def test_what_fails_is_a_row_and_can_be_tried_again(lens, scenes, tmp_path):
    pictures = tmp_path / "pictures"
    shutil.copytree(scenes, pictures)
    broken, changed = pictures / "ring" / "0.png", pictures / "cross" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no picture")
    study = Study(tmp_path / "study", model=MODEL, chunk=5)
    study.add_folder(pictures, prompt=QUESTION)
    original = changed.read_bytes()
    draw_scene(random.Random(5), size=(48, 48)).image.save(changed)
    study.measure(analysis.head_specialization)
    study.measure(analysis.neuron_activity, domain="all")
    study.run(lens=lens, batch=4)
    failed = study.failures().set_index("error_type")
    assert len(failed) == 2 and failed.error.str.contains("has changed since").sum() == 1
    assert study.progress()[["done", "failed", "examples"]].to_numpy().tolist() == [[8, 2, 10]]
    assert len(study.result(analysis.head_specialization).examples) == 8
    assert study.result(analysis.neuron_activity).result.examples == 8
    changed.write_bytes(original)
    assert study.retry(lens=lens) == 1
    assert len(study.failures()) == 1 and study.failures().attempts.tolist() == [2]
    assert len(study.result(analysis.head_specialization).examples) == 9
    assert study.result(analysis.neuron_activity).result.examples == 9
    broken.write_bytes(whole)
    assert study.retry(lens=lens) == 0  # the bytes that were added are b"no picture"


def test_numbers_do_not_depend_on_who_else_fails(lens, finished, scenes, tmp_path):
    """Those that run in a batch with a broken picture run together once more."""
    study = Study(tmp_path / "study", model=MODEL, chunk=11)
    pictures = tmp_path / "pictures"
    shutil.copytree(scenes, pictures)
    (pictures / "ring" / "broken.png").write_bytes(b"no picture")
    study.add_folder(pictures, prompt=QUESTION)
    study.measure(analysis.head_specialization)
    study.run(lens=lens, batch=11)
    result = study.result(analysis.head_specialization)
    inputs = lens.prepare([QUESTION] * 10, images=[list(images) for images in result.examples.images])
    _, cache = lens.run_with_cache(inputs, needs=[analysis.head_specialization], query_positions=[-1])
    assert torch.equal(result.result.mass, analysis.head_specialization(cache, inputs.modality).mass)


def test_what_does_not_fit_is_halved(lens, scenes, tmp_path, monkeypatch):
    study = Study(tmp_path / "study", model=MODEL)
    study.add_folder(scenes, prompt=QUESTION)
    study.measure(analysis.head_specialization)
    sizes, run = [], lensplug.MultimodalLens.run_with_cache

    def small(self, inputs, **options):
        sizes.append(len(inputs))
        if len(inputs) > 3:
            raise torch.OutOfMemoryError("too large")
        return run(self, inputs, **options)

    monkeypatch.setattr(lensplug.MultimodalLens, "run_with_cache", small)
    study.run(lens=lens, batch=10)
    assert sizes == [10, 5, 2, 3, 5, 2, 3] and study.failures().empty
    ids = study.result(analysis.head_specialization).examples.id.tolist()
    assert ids == study.examples.id.tolist()


def test_one_example_that_does_not_fit_is_a_row(lens, scenes, tmp_path, monkeypatch):
    study = Study(tmp_path / "study", model=MODEL)
    study.add_folder(scenes, prompt=QUESTION)
    study.measure(analysis.head_specialization)
    run = lensplug.MultimodalLens.run_with_cache

    def no_large_pictures(self, inputs, **options):
        if inputs.tokens.shape[1] > 150:
            raise torch.OutOfMemoryError("too large")
        return run(self, inputs, **options)

    monkeypatch.setattr(lensplug.MultimodalLens, "run_with_cache", no_large_pictures)
    study.run(lens=lens, batch=4)
    failed = study.failures()
    assert set(failed.error_type) == {"OutOfMemoryError"} and 0 < len(failed) < 10


def test_a_study_of_something_else_is_refused_by_what_differs(copied):
    place = copied.storage.place
    with pytest.raises(LensplugError, match="dtype: None there, 'float64' asked for"):
        Study(place, model=MODEL, dtype="float64")
    with pytest.raises(LensplugError, match="model: 'lensplug.tiny:llava_onevision' there"):
        Study(place, model="lensplug.tiny:audio_llama")
    with pytest.raises(LensplugError, match="chunk: 4 there, 5 asked for"):
        Study(place, model=MODEL, chunk=5)
    assert Study(place, model=MODEL).identity == copied.identity
    with pytest.raises(LensplugError, match="no study: it has no study.json"):
        Study(Path(place) / "results", model=MODEL)
    with pytest.raises(LensplugError, match="there is no study in"):
        Study(Path(place) / "nothing here")


def test_a_folder_of_a_model_is_known_by_its_content(tmp_path):
    from lensplug.tiny import CHECKPOINTS

    shutil.copytree(CHECKPOINTS / "llava-onevision", tmp_path / "moved")
    study = Study(tmp_path / "study", model=CHECKPOINTS / "llava-onevision")
    assert Study(tmp_path / "study", model=tmp_path / "moved").identity == study.identity
    weights = next((tmp_path / "moved").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(LensplugError, match="What differs is weights"):
        Study(tmp_path / "study", model=tmp_path / "moved")


def test_other_versions_are_refused_or_another_pass(copied, lens, scenes, monkeypatch):
    newer = {"lensplug": "9", "transformer-lens": "9", "transformers": "9", "torch": "9"}
    monkeypatch.setattr("lensplug.study.passes.versions", lambda *packages: newer)
    copied.run(lens=lens)  # complete: nothing to do, whatever the versions
    assert len(copied.progress()) == 1
    shape = {"prompt": ["What is the shape? Answer single word."], "image": [str(scenes / "ring/0.png")]}
    copied.add(pd.DataFrame({**shape, "shape": ["ring"]}))
    with pytest.raises(LensplugError, match="begun with other versions .*torch"):
        copied.run(lens=lens)
    copied.run(lens=lens, new_versions=True)
    assert copied.progress().done.tolist() == [10, 11]
    assert len(copied.result(analysis.head_specialization).examples) == 11


def test_other_weights_are_refused(copied, scenes):
    copied.add(pd.DataFrame({"prompt": ["What?"], "image": [str(scenes / "ring/0.png")], "shape": ["ring"]}))
    other = lensplug.tiny.llava_onevision()
    with torch.no_grad():
        other.core.decoder.embed_tokens.weight.mul_(1.01)
    with pytest.raises(LensplugError, match="the weights are others"):
        copied.run(lens=other)


def test_a_file_that_was_cut_short_is_set_aside_and_measured_again(copied, finished, lens):
    path = next((Path(copied.storage.place) / "results").rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LensplugError, match="is broken .* run the study again"):
        copied.result(analysis.head_specialization).mean()
    with pytest.warns(lensplug.LensplugWarning, match="1 files of results are broken"):
        copied.run(lens=lens, batch=4)
    again, before = (one.result(analysis.head_specialization).result for one in (copied, finished))
    assert torch.equal(again.mass, before.mass) and path.with_name(path.name + ".broken").exists()


def test_a_full_disk_loses_nothing(lens, scenes, tmp_path, monkeypatch):
    study = Study(tmp_path / "study", model=MODEL, chunk=2)
    study.add_folder(scenes, prompt=QUESTION)
    study.measure(analysis.head_specialization)
    from lensplug.files.atomic_write import write_bytes

    written: list[Path] = []

    def full(path, content):
        if "results" in str(path) and len(written) >= 3:
            raise LensplugError(f"{str(path)!r} cannot be written: No space left on device.")
        if "results" in str(path):
            written.append(path)
        return write_bytes(path, content)

    monkeypatch.setattr("lensplug.study.local_folder.write_bytes", full)
    with pytest.raises(LensplugError, match="No space left"):
        study.run(lens=lens)
    monkeypatch.undo()
    assert study.progress().done.tolist() == [4] and study.progress().chunks_at_work.tolist() == [0]
    study.run(lens=lens)
    assert study.progress().done.tolist() == [10]


def test_a_study_whose_first_examples_all_fail_ends_at_once(lens, scenes, tmp_path):
    study = Study(tmp_path / "study", model=MODEL)
    study.add_folder(scenes, prompt=QUESTION)
    study.measure(analysis.logit_lens, target="no word of this model")
    with pytest.raises(LensplugError, match="every one of the first 10 examples failed"):
        study.run(lens=lens)
    assert study.progress().done.tolist() == [0] and study.progress().failed.tolist() == [0]


def test_examples_that_died_twice_run_alone_and_one_that_dies_alone_is_set_aside(lens, copied, scenes, monkeypatch):
    pictures = {"image": [str(scenes / "ring/0.png")] * 2, "shape": ["ring"] * 2}
    copied.add(pd.DataFrame({"prompt": ["What?", "Why?"], **pictures}))
    table = copied.examples
    new = table[table.part == table.part.iloc[-1]]
    chunk = f"{new.part.iloc[0]}-00000"
    from lensplug.study import passes

    running = passes.to_run(copied.storage, copied.identity, [chunk, "x"], new_versions=False)[0]
    batches = []

    def die(claim_examples):
        """As a process that is killed leaves it."""
        worker = Worker(lens, copied.storage, running, new, 2)
        worker.claims.process = {**worker.claims.process, "pid": 2**22 + 1}
        assert worker.claims.taken(chunk)
        worker.claims.running(chunk, claim_examples)

    def counted(lens, measurements, rows, media):
        batches.append(len(rows))
        return run_batch(lens, measurements, rows, media)

    monkeypatch.setattr("lensplug.study.worker.run_batch", counted)
    ids = new.id.tolist()
    die(ids)
    die(ids)
    die(ids[:1])
    Worker(lens, copied.storage, running, new, 2).work()
    failed = copied.failures()
    assert failed.id.tolist() == ids[:1] and failed.error_type.tolist() == ["KilledItsProcess"]
    assert batches == [1]  # the other ran alone
    assert copied.storage.names(f"claims/{running.key}") == []


def test_a_chunk_of_a_living_process_is_left_to_it(lens, copied, scenes):
    copied.add(pd.DataFrame({"prompt": ["What?"], "image": [str(scenes / "ring/0.png")], "shape": ["ring"]}))
    from lensplug.study import passes

    table = copied.examples
    chunk = f"{table.part.iloc[-1]}-00000"
    running = passes.to_run(copied.storage, copied.identity, [chunk, "x"], new_versions=False)[0]
    other = Worker(lens, copied.storage, running, table, 2)
    assert other.claims.taken(chunk)
    assert Worker(lens, copied.storage, running, table, 2).work()  # something is left
    assert copied.progress().chunks_at_work.tolist() == [1]
    other.claims.released(chunk)
    assert not Worker(lens, copied.storage, running, table, 2).work()


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


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_manifests(suffix, scenes, tmp_path):
    table = pd.DataFrame(
        {"prompt": ["What?", "Why?"], "image": ["ring/0.png", "cross/1.png"], "target": ["Red", None], "year": [1, 2]}
    )
    path = scenes / f"manifest{suffix}"
    write = {".csv": lambda: table.to_csv(path, index=False), ".parquet": lambda: table.to_parquet(path),
             ".jsonl": lambda: table.to_json(path, orient="records", lines=True)}  # fmt: skip
    write[suffix]()
    study = Study(tmp_path / "study", model=MODEL)
    assert study.add(path) == 2
    path.unlink()
    examples = study.examples.set_index("prompt")
    assert examples.loc["What?"].target == "Red" and pd.isna(examples.loc["Why?"].target)
    assert examples.year.tolist() in ([1, 2], [2, 1]) and examples.year.dtype == np.int64
    assert examples.loc["What?"].images[0].endswith("ring/0.png")


def test_a_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = [draw_scene(random.Random(index), size=(48, 48)).image for index in range(2)]
    rows = {"image": pictures, "prompt": ["What?", "Why?"], "species": ["rose", "tulip"]}
    features = datasets.Features(
        {"image": datasets.Image(), "prompt": datasets.Value("string"), "species": datasets.Value("string")}
    )
    study = Study(tmp_path / "study", model=MODEL)
    assert study.add(datasets.Dataset.from_dict(rows, features=features)) == 2
    assert sorted(study.examples.species) == ["rose", "tulip"]
    assert len(list((tmp_path / "study/media").iterdir())) == 2


def test_what_cannot_be_added_is_refused(copied, scenes, tmp_path):
    picture = str(scenes / "ring/0.png")
    with pytest.raises(LensplugError, match="occur more than once"):
        copied.add(pd.DataFrame({"prompt": ["a", "a"], "image": [picture] * 2}))
    assert copied.add(pd.DataFrame({"prompt": ["a", "a"], "image": [picture] * 2, "key": ["1", "2"]})) == 2
    with pytest.raises(LensplugError, match="no column 'prompt'"):
        copied.add(pd.DataFrame({"image": [picture]}))
    with pytest.raises(LensplugError, match="cannot be read: No such file"):
        copied.add(pd.DataFrame({"prompt": ["a"], "image": ["nowhere.png"]}))
    with pytest.raises(LensplugError, match="is now given"):
        copied.add(pd.DataFrame({"prompt": [QUESTION], "image": [picture], "shape": ["square"]}))
    with pytest.raises(LensplugError, match="is no manifest"):
        copied.add(tmp_path / "table.xlsx")
    with pytest.raises(LensplugError, match="has no images"):
        copied.add_folder(tmp_path, prompt="a")
    with pytest.raises(LensplugError, match="uses itself"):
        copied.add(pd.DataFrame({"prompt": ["a"], "image": [picture], "chunk": [0]}))


def test_a_lens_of_something_else_is_refused(tmp_path, lens):
    from lensplug.tiny import CHECKPOINTS

    study = Study(tmp_path / "study", model=CHECKPOINTS / "audio-llama", dtype="float64")
    study.add(pd.DataFrame({"prompt": ["What?"]}))
    study.measure(analysis.logit_lens)
    with pytest.raises(LensplugError, match="dtype: 'float64' there, 'float32' given; model: 'audio-llama' there"):
        study.run(lens=lens)


def test_nothing_is_left_of_an_addition_that_is_refused(tmp_path):
    picture = draw_scene(random.Random(1), size=(48, 48)).image
    study = Study(tmp_path / "study", model=MODEL)
    with pytest.raises(LensplugError, match="occur more than once"):
        study.add([analysis.Example("What?", "Red", images=[picture])] * 2)
    assert list((tmp_path / "study/media").iterdir()) == [] and study.examples.empty


def test_a_chunk_in_which_everything_failed_has_the_same_schema(finished):
    measurements = finished.result("logit_lens").made.measurements
    failed = chunk_files.Outcome(failures={"a": chunk_files.Failure("LensplugError", "broken")})
    table = chunk_files.table(["a"], failed, measurements, {}, "node")
    there = pq.read_table(next((Path(finished.storage.place) / "results").rglob("*.parquet")))
    assert table.schema.equals(there.schema) and table["error"].to_pylist() == ["broken"]
    assert table["logit_lens.top_texts"].null_count == 1


def test_duckdb_and_polars_can_read_the_folder(finished):
    """They read Parquet; so does pandas, of any of the files."""
    table = pd.concat(map(pd.read_parquet, sorted((Path(finished.storage.place) / "results").rglob("*.parquet"))))
    assert len(table) == 10 and table["head_specialization.mass"].map(len).unique().tolist() == [6 * 6 * 7]
    assert table["logit_lens.rank"].map(len).unique().tolist() == [7]
