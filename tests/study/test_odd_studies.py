"""Studies that are asked for odd things: refused before anything is written, or right."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.models import QUESTION

import lensplug
from lensplug import LensplugError, LensplugWarning, analysis
from lensplug.analysis.example_rows import columns_of
from lensplug.study import Study
from lensplug.study.measurements import Measurement
from lensplug.study.ways import WAYS
from lensplug.tiny.scenes import draw_scene

MODEL = "lensplug.tiny:llava_onevision"


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


@pytest.fixture
def study(tmp_path) -> Study:
    """A study without examples."""
    return Study(tmp_path / "study", model=MODEL, chunk=4)


def pictures(folder: Path, count: int) -> list[str]:
    """Files of different scenes."""
    folder.mkdir(exist_ok=True)
    for index in range(count):
        draw_scene(random.Random(index), size=(48, 48)).image.save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(count)]


def table(files: list[str], **columns) -> pd.DataFrame:
    return pd.DataFrame({"prompt": QUESTION, "image": files, **columns})


def test_questions_about_one_picture_are_one_cluster(study, lens, tmp_path):
    files = pictures(tmp_path / "pictures", 6)
    wordings = [QUESTION, "What is the shape? Answer single word.", "What is the place? Answer single word."]
    for prompt in wordings:
        study.add(table(files, group=["a", "b"] * 3), prompt=None) if prompt == QUESTION else study.add(
            table(files, group=["a", "b"] * 3).assign(prompt=prompt)
        )
    study.measure(analysis.head_specialization)
    study.run(lens=lens)
    heads = study.result(analysis.head_specialization)
    found = heads.difference("a", "b", by="group", permutations=100).table.dropna()
    assert (found["clusters"] == 6).all() and (found["count"] == 18).all()
    alone = heads.difference("a", "b", by="group", clusters="id", permutations=100).table.dropna()
    assert (alone["clusters"] == 18).all()
    questions = heads.difference(wordings[0], wordings[1], by="prompt", permutations=100)
    assert questions.paired and (questions.table.dropna()["count"] == 6).all()


def test_a_picture_in_both_groups_is_no_pair_of_all(study, lens, tmp_path):
    files = pictures(tmp_path / "pictures", 4)
    study.add(table([*files, files[0]], group=["a", "b", "a", "b", "b"], key=["1", "2", "3", "4", "5"]))
    study.measure(analysis.head_specialization)
    study.run(lens=lens)
    heads = study.result(analysis.head_specialization)
    with pytest.raises(LensplugError, match="1 of 2 and 3 pictures or sounds are in both groups"):
        heads.difference("a", "b", by="group")
    assert heads.difference("a", "b", by="group", pairs="media", permutations=10).table["count"].max() == 1


@pytest.mark.parametrize("name", ["prompt", "target", "key", "images", "sha256", "part", "media", "error", "pass"])
def test_names_of_the_studys_own_are_refused_before_anything_is_written(study, tmp_path, name):
    files = pictures(tmp_path / "pictures", 1)
    with pytest.raises(LensplugError, match="a study uses itself"):
        study.add_folder(tmp_path / "pictures", prompt=QUESTION, group=name)
    if name not in ("prompt", "target", "key", "images"):
        with pytest.raises(LensplugError, match="a study uses itself"):
            study.add(table(files, **{name: ["x"]}))
    assert study.examples.empty


def test_a_column_keeps_its_type(study, tmp_path):
    files = pictures(tmp_path / "pictures", 5)
    study.add(table(files[:2], n=[0, 1], word=["x", "y"], empty=[None, None]))
    for wrong in ({"n": ["x"]}, {"word": [1]}):
        with pytest.raises(LensplugError, match="give values of one type"):
            study.add(table(files[2:3], **wrong))
    study.add(table(files[2:3], n=[0.5], word=[None], empty=["later"]))
    study.add(table(files[3:4], n=[None], word=["x"], empty=[None]))
    from lensplug.study.groups import names_in

    assert sorted(names_in(study.examples, "n")) == ["(missing)", "0", "0.5", "1"]
    assert sorted(names_in(study.examples, "word")) == ["(missing)", "x", "x", "y"]
    with pytest.raises(LensplugError, match="expected a number or a text"):
        study.add(table(files[4:], tags=[["a", "b"]]))
    assert len(study.examples) == 4


def test_texts_of_manifests_stay_texts(study, tmp_path):
    files = pictures(tmp_path / "pictures", 3)
    csv = tmp_path / "manifest.csv"
    csv.write_text(f"prompt,image,target,key\n{QUESTION},{files[0]},None,001\n12,{files[1]},NA,\n")
    study.add(csv)
    rows = study.examples.set_index("prompt")
    assert rows.loc[QUESTION].target == "None" and rows.loc[QUESTION, "key"] == "001"
    assert rows.loc["12"].target == "NA" and pd.isna(rows.loc["12", "key"])
    lines = tmp_path / "manifest.jsonl"
    lines.write_text(json.dumps({"prompt": "13", "image": files[2], "target": "1.0", "code": "01234"}))
    study.add(lines)
    row = study.examples.set_index("prompt").loc["13"]
    assert row.target == "1.0" and row.code == "01234"
    csv.write_text(f"prompt,image\n{QUESTION},{files[0]},one too many\n")
    with pytest.raises(LensplugError, match="cannot be read"):
        study.add(csv)


def test_a_measurement_can_be_taken_back(study, lens, tmp_path):
    study.add(table(pictures(tmp_path / "pictures", 3)))
    study.measure(analysis.head_specialization)
    study.measure(analysis.logit_lens, positions=-999)
    with pytest.raises(LensplugError, match="study.forget"):
        study.run(lens=lens)
    study.forget("logit_lens")
    study.measure(analysis.logit_lens, positions=-1)
    study.run(lens=lens)
    assert study.failures().empty and len(study.result("logit_lens").examples) == 3
    with pytest.raises(LensplugError, match="is not measured in this study"):
        study.forget("rollout")


def test_an_option_that_is_given_as_its_default_is_no_other_measurement(study, lens, tmp_path):
    study.add(table(pictures(tmp_path / "pictures", 2)))
    study.measure(analysis.head_specialization)
    study.run(lens=lens)
    study.measure(analysis.head_specialization, query=-1)
    study.measure(analysis.logit_lens, positions=-1)
    study.measure(analysis.logit_lens)
    assert len(study.storage.names("measurements")) == 2
    same, other = (Measurement("head_specialization", {"query": query}, "head_specialization") for query in (-1, -2))
    assert same.key == replace(same, options={}).key != other.key
    assert (
        not Measurement("modality_null", {"seed": 0}).changed and Measurement("modality_null", {"seed": False}).changed
    )
    study.run(lens=lens)
    assert study.progress().measurements.tolist() == ["head_specialization", "logit_lens"]
    compared = study.result("head_specialization")
    assert compared.compare(replace(compared, measurement=same), permutations=10).paired


def test_a_measurement_of_an_older_version_is_found_whatever_its_file_is_called(study):
    study.measure(analysis.head_specialization, query=-1)
    folder = Path(study.storage.place) / "measurements"
    (file,) = folder.iterdir()
    file.rename(folder / "0123456789abcdef.json")
    study.measure(analysis.head_specialization)
    assert [one.name for one in folder.iterdir()] == ["0123456789abcdef.json"]
    study.forget("head_specialization")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("how", ["cut", "gone", "flipped"])
def test_broken_counts_and_numbers_are_measured_again(study, lens, tmp_path, how):
    study.add(table(pictures(tmp_path / "pictures", 6)))
    study.measure(analysis.neuron_activity, domain="all")
    study.measure(analysis.head_specialization)
    study.run(lens=lens)
    fired, mass = study.result("neuron_activity").result.fired, study.result("head_specialization").result.mass
    results = Path(study.storage.place) / "results"
    path = sorted(results.rglob("*.parquet" if how == "flipped" else "*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[:-50])
    elif how == "gone":
        path.unlink()
        with pytest.raises(LensplugError, match="is gone"):
            study.result("neuron_activity").result.fired.sum()
    else:
        content[len(content) // 3] ^= 255
        path.write_bytes(content)
    with pytest.warns(LensplugWarning, match="are broken"):
        study.run(lens=lens)
    assert torch.equal(study.result("neuron_activity").result.fired, fired)
    assert torch.equal(study.result("head_specialization").result.mass.nan_to_num(-1), mass.nan_to_num(-1))


def test_examples_tried_again_count_once_when_their_chunk_is_measured_again(study, lens, tmp_path):
    files = pictures(tmp_path / "pictures", 4)
    study.add(table(files))
    contents = [Path(file).read_bytes() for file in files]
    study.measure(analysis.neuron_activity, domain="all")
    for file in files[:2]:
        Path(file).write_bytes(b"changed")
    study.run(lens=lens)
    for file, content in zip(files[:2], contents, strict=False):
        Path(file).write_bytes(content)
        study.retry(lens=lens)  # two more files
    assert study.failures().empty and study.result("neuron_activity").result.examples == 4
    results = Path(study.storage.place) / "results"
    retries = sorted(results.rglob("*.retry-*.parquet"))
    assert [path.stem.partition(".")[2] for path in retries] == ["retry-1", "retry-2"]
    retries[0].write_bytes(b"broken")
    with pytest.warns(LensplugWarning, match="1 files of results are broken"):
        study.run(lens=lens)
    assert len(study.failures()) == 1 and study.retry(lens=lens) == 1
    assert study.result("neuron_activity").result.examples == 4
    chunk = next(path for path in results.rglob("*.parquet") if ".retry-" not in path.name)
    chunk.write_bytes(b"broken")
    with pytest.warns(LensplugWarning, match="are broken"):
        study.run(lens=lens)
    found = study.result("neuron_activity")
    assert found.result.examples == 4 and sorted(found.examples.id) == sorted(study.examples.id)


def test_odd_files_of_a_folder(study, tmp_path):
    folder = tmp_path / "pictures"
    files = pictures(folder, 2)
    shutil.copy(files[0], folder / "copy.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    assert study.add_folder(folder, prompt=QUESTION) == 3
    assert study.add_folder(folder, prompt=QUESTION) == 0
    shutil.copy(files[1], folder / "[x].png")
    assert study.add(table([str(folder / "[x].png")], key=["brackets"])) == 1
    (tmp_path / "itself.png").symlink_to("itself.png")
    for odd in (tmp_path / "itself.png", "~nobody-of-this-name/x.png"):
        with pytest.raises(LensplugError, match="cannot be read"):
            study.add(table([str(odd)]))
    with pytest.raises(LensplugError, match="no regular file"):
        study.add(table([str(folder / "pipe.png")]))
    with pytest.raises(LensplugError, match="empty list"):
        study.add_folder(folder, prompt=[])
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(Path(files[1]).read_bytes())
    with pytest.raises(LensplugError, match="not UTF-8"):
        study.add_folder(folder, prompt="another")


def test_files_of_a_folder_that_cannot_be_read_are_named_and_left_out(study, tmp_path):
    folder = tmp_path / "pictures"
    pictures(folder, 2)
    (folder / "nothing.png").symlink_to("nowhere.png")
    (folder / "itself.png").symlink_to("itself.png")
    with pytest.warns(LensplugWarning, match="2 files of .* are left out: .*itself.png.*nothing.png.*No such file"):
        assert study.add_folder(folder, prompt=QUESTION) == 2
    shutil.copy(folder / "0.png", folder / "nowhere.png")
    (folder / "itself.png").unlink()
    assert study.add_folder(folder, prompt=QUESTION) == 1  # a copy of 0.png, and a link to it
    (folder / "linked.png").symlink_to("1.png")
    assert study.add_folder(folder, prompt=QUESTION) == 0
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "nothing.png").symlink_to("nowhere.png")
    with pytest.warns(LensplugWarning, match="1 files"), pytest.raises(LensplugError, match="has no images"):
        study.add_folder(alone, prompt=QUESTION)


def test_what_is_no_list_of_examples_is_refused(study):
    for odd in (None, 5, [1, 2], b"x"):
        with pytest.raises(LensplugError, match="expected a CSV, JSONL or Parquet file"):
            study.add(odd)
    example = analysis.Example("What?", "Red")
    with pytest.raises(LensplugError, match="expected a list with an entry for each"):
        study.add([example], x=5)


def test_odd_options_are_refused(study, tmp_path, lens):
    assert study.progress().empty and study.failures().empty
    study.add(table(pictures(tmp_path / "pictures", 2)))
    with pytest.raises(LensplugError, match="query is a list"):
        study.measure(analysis.head_specialization, query=[1, 2])
    with pytest.raises(LensplugError, match="name is 5"):
        study.measure(analysis.head_specialization, name=5)
    study.measure(analysis.head_specialization)
    with pytest.raises(LensplugError, match="'bach'"):
        study.run(bach=32)
    with pytest.raises(LensplugError, match="devices is an empty list"):
        study.run(devices=[])
    with pytest.raises(LensplugError, match="lens is 5"):
        study.run(lens=5)
    with pytest.raises(LensplugError, match="batch is 0"):
        study.retry(batch=0)


@pytest.mark.parametrize("content", ["[]", "null", '{"format": 1}', '{"format": 1, "more": 2}', "{"])
def test_a_broken_identity_is_refused(study, content):
    place = Path(study.storage.place)
    (place / "study.json").write_text(content)
    with pytest.raises(LensplugError, match="study.json .* is broken"):
        Study(place)


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.rows])
def test_what_has_a_row_for_each_example_has_columns(name):
    assert columns_of(Measurement(name).kind)
