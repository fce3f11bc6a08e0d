"""Examples that are added to a study: folders, manifests, data sets; what cannot be added is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.models import QUESTION
from support.scene_studies import MODEL

from lensplug import LensplugError, analysis
from lensplug.study import Study
from lensplug.tiny.scenes import draw_scene


def test_adding_again_changes_nothing_and_more_is_new_chunks(copied, lens, scenes, tmp_path):
    assert copied.add_folder(scenes, prompt=QUESTION, group="shape") == 0
    before = {path: path.read_bytes() for path in sorted((Path(copied.storage.place) / "results").rglob("*.parquet"))}
    picture = tmp_path / "more.png"
    draw_scene(random.Random(9), size=(48, 48)).image.save(picture)
    assert copied.add(pd.DataFrame({"prompt": [QUESTION], "image": [str(picture)], "shape": ["ring"]})) == 1
    copied.run(lens=lens)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert copied.progress().done.tolist() == [11]


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


def test_nothing_is_left_of_an_addition_that_is_refused(tmp_path):
    picture = draw_scene(random.Random(1), size=(48, 48)).image
    study = Study(tmp_path / "study", model=MODEL)
    with pytest.raises(LensplugError, match="occur more than once"):
        study.add([analysis.Example("What?", "Red", images=[picture])] * 2)
    assert list((tmp_path / "study/media").iterdir()) == [] and study.examples.empty
