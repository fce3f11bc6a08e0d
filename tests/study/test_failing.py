"""What fails in a study is a row, a batch that is halved, or a chunk that is measured again; never the end."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from support.models import QUESTION
from support.scene_studies import MODEL

import lensplug
from lensplug import LensplugError, analysis
from lensplug.study import Study
from lensplug.study.batches import run_batch
from lensplug.study.measurements import Measurement
from lensplug.study.worker import Worker
from lensplug.tiny.scenes import draw_scene


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


def test_a_measurement_that_raises_for_one_example_is_its_row_and_says_so(lens, scenes, tmp_path):
    """It has no answer to be scored."""
    study = Study(tmp_path / "study", model=MODEL, chunk=5)
    rows: list[dict[str, Any]] = [
        {"prompt": QUESTION, "images": [str(path)], "target": "Red"} for path in sorted(scenes.rglob("*.png"))[:4]
    ]
    rows[2]["target"] = None
    study.add(pd.DataFrame(rows))
    study.measure(analysis.grounding, medium="image", name="words")
    study.measure(analysis.head_specialization)
    study.run(lens=lens, batch=4)
    failed = study.failures()
    assert failed.id.tolist() == study.examples.id[study.examples.target.isna()].tolist()
    assert failed.error.tolist()[0].startswith("words: the example has no answer to be scored")
    assert len(study.result("words").examples) == 3
    assert len(study.result(analysis.head_specialization).examples) == 4, "it needs no answer"


def test_each_measurement_stands_on_its_own(lens, finished, scenes, tmp_path, monkeypatch):
    """What raises for an example is lost, and nothing else of it; it alone is tried again."""
    study = Study(tmp_path / "study", model=MODEL, chunk=5)
    study.add_folder(scenes, prompt=QUESTION)
    study.measure(analysis.head_specialization)
    study.measure(analysis.neuron_activity, domain="all")
    study.measure(analysis.logit_lens, positions=-1, top_k=2)
    ids = study.examples.id.tolist()
    odd = {("neuron_activity", ids[1]), ("logit_lens", ids[1]), ("logit_lens", ids[7])}
    asked, plain = [], Measurement.arguments

    def arguments(self, rows, tokenizer):
        asked.append((self.name, len(rows)))
        if any((self.name, one) in odd for one in rows.id):
            raise ValueError(f"{self.name} is odd")
        return plain(self, rows, tokenizer)

    monkeypatch.setattr(Measurement, "arguments", arguments)
    study.run(lens=lens, batch=5)
    failed = study.failures().set_index("id")
    assert failed.error.to_dict() == {
        ids[1]: "neuron_activity: neuron_activity is odd; logit_lens: logit_lens is odd",
        ids[7]: "logit_lens: logit_lens is odd",
    }
    assert study.progress()[["done", "failed"]].to_numpy().tolist() == [[8, 2]]
    heads, neurons, logits = (study.result(name) for name in ("head_specialization", "neuron_activity", "logit_lens"))
    assert heads.examples.id.tolist() == ids
    assert neurons.examples.id.tolist() == ids[:1] + ids[2:] and neurons.result.examples == 9
    assert logits.examples.id.tolist() == [one for one in ids if one not in (ids[1], ids[7])]
    assert len(logits.result.log_probability) == 8
    for batch in (ids[:5], ids[5:]):
        of_batch = study.examples.set_index("id").loc[batch]
        inputs = lens.prepare([QUESTION] * 5, images=[list(images) for images in of_batch.images])
        _, cache = lens.run_with_cache(inputs, needs=[analysis.head_specialization], query_positions=[-1])
        mass = analysis.head_specialization(cache, inputs.modality).mass
        at = [ids.index(one) for one in batch]
        torch.testing.assert_close(heads.result.mass[at], mass, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert "What failed" in study.report(tmp_path / "report.html").read_text()
    assert set(heads.to_dataframe().id) == set(ids) and set(logits.to_dataframe().id) == set(logits.examples.id)

    study.run(lens=lens, batch=5)  # nothing is left to be done, and no file is broken
    asked.clear()
    odd.clear()
    assert study.retry(lens=lens) == 2 and study.failures().empty
    assert sorted(asked) == [("logit_lens", 1), ("logit_lens", 1), ("neuron_activity", 1)]
    assert study.result("head_specialization").examples.id.tolist() == ids
    assert study.result("neuron_activity").result.examples == 10
    assert sorted(study.result("logit_lens").examples.id) == sorted(ids)
    assert torch.equal(study.result("head_specialization").result.mass.nan_to_num(-1), heads.result.mass.nan_to_num(-1))


def test_a_measurement_that_fails_for_all_ends_the_study_and_is_named(lens, scenes, tmp_path):
    study = Study(tmp_path / "study", model=MODEL, chunk=5)
    study.add_folder(scenes, prompt=QUESTION)
    study.measure(analysis.head_specialization)
    study.measure(analysis.grounding, medium="image")
    with pytest.raises(LensplugError, match="every one of the first 5 .* grounding: the example has no answer"):
        study.run(lens=lens, batch=5)
    assert study.progress().done.tolist() == [0]
    study.forget("grounding")
    study.run(lens=lens, batch=5)
    assert len(study.result("head_specialization").examples) == 10


def test_rows_of_older_studies_have_no_names_of_what_was_measured(copied, finished):
    """A row without an error has everything, and one with an error nothing."""
    for path in (Path(copied.storage.place) / "results").rglob("*.parquet"):
        table = pq.read_table(path).drop_columns(["measured"])
        pq.write_table(table, path)
    again, before = (study.result("head_specialization") for study in (copied, finished))
    assert again.examples.id.tolist() == before.examples.id.tolist()
    assert torch.equal(again.result.mass.nan_to_num(-1), before.result.mass.nan_to_num(-1))
    assert copied.failures().empty


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


def test_a_file_that_was_cut_short_is_set_aside_and_measured_again(copied, finished, lens):
    path = next((Path(copied.storage.place) / "results").rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LensplugError, match="is broken .* run the study again"):
        copied.result(analysis.head_specialization).mean()
    with pytest.warns(lensplug.LensplugWarning, match="1 files of results are broken"):
        copied.run(lens=lens, batch=4)
    again, before = (one.result(analysis.head_specialization).result for one in (copied, finished))
    assert torch.equal(again.mass, before.mass) and path.with_name(path.name + ".broken").exists()


def test_of_an_array_jobs_tasks_the_first_reads_all_results(copied, lens, monkeypatch):
    path = next((Path(copied.storage.place) / "results").rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "2")
    copied.run(lens=lens)  # it would warn
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with pytest.warns(lensplug.LensplugWarning, match="1 files of results are broken"):
        copied.run(lens=lens)


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
