"""The life of a study in a bucket of a server that speaks S3's protocol. `make test-cluster`."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

import pytest
from support.killed_studies import MODEL, QUESTION, differences, environment

import lensplug
from lensplug import LensplugError, LensplugWarning, analysis
from lensplug.tiny.scenes import draw_scene

if not os.environ.get("LENSPLUG_TEST_CLUSTER"):
    pytest.skip("minutes; make test-cluster runs it", allow_module_level=True)
COLORS = ("red", "blue", "green", "red", "blue", "green", "red")


def begun(place) -> lensplug.Study:
    """A study of pictures that are in memory."""
    rng = random.Random(2)
    scenes = [draw_scene(rng, size=(48, 48), color=color) for color in COLORS]
    examples = [analysis.Example(QUESTION, scene.color.capitalize(), images=[scene.image]) for scene in scenes]
    study = lensplug.Study(place, model=MODEL, chunk=2)
    assert study.add(examples, color=list(COLORS)) == 7 and study.add(examples, color=list(COLORS)) == 0
    study.measure(analysis.head_specialization)
    study.measure(analysis.neuron_activity, domain=study.column("color"))
    return study


def downloaded(study: lensplug.Study, folder: Path, inside: str = "") -> Path:
    """A copy of a study on this machine."""
    for name in study.storage.names(inside):
        path = f"{inside}/{name}".lstrip("/")
        if study.storage.names(path):
            downloaded(study, folder, path)
        elif not name.endswith(".broken"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # a folder with nothing in it
                (folder / path).write_bytes(study.storage.read(path))
    return folder


def test_the_life_of_a_study_in_a_bucket(bucket, tmp_path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    here = begun(tmp_path / "here")
    here.run()
    study = begun(bucket)
    assert len(study.storage.names("media")) == 7
    medium = f"media/{study.storage.names('media')[0]}"
    content = study.storage.read(medium)
    study.storage.write(medium, b"another picture")
    study.run(devices=["cpu", "cpu"])
    assert study.failures().error.str.contains("has changed since it was added").tolist() == [True]
    study.storage.write(medium, content)
    assert study.retry() == 1 and study.failures().empty
    assert study.progress()[["done", "failed", "chunks_at_work"]].to_numpy().tolist() == [[7, 0, 0]]
    failed = [name for name in study.storage.names("results/" + study.progress()["pass"][0]) if "retry" in name]
    chunk = f"results/{study.progress()['pass'][0]}/{failed[0].partition('.')[0]}"
    study.storage.write(f"{chunk}.parquet", study.storage.read(f"{chunk}.parquet")[:-50])  # as an upload that broke off
    for name in failed:
        study.storage.remove(f"{chunk.rpartition('/')[0]}/{name}")
    with pytest.warns(LensplugWarning, match="1 files of results were cut short"):
        lensplug.Study(bucket).run()
    assert study.storage.exists(f"{chunk}.parquet.broken")
    found = differences(downloaded(study, tmp_path / "copy"), tmp_path / "here")
    assert found == {"rows": 7, "distinct": 7, "missing": 0, "different": 0, "chunks": 4}
    heads, activity = study.result(analysis.head_specialization), study.result(analysis.neuron_activity)
    assert (heads.result.mass == here.result(analysis.head_specialization).result.mass).all()
    assert activity.result.domains == ("blue", "green", "red") and not heads.mean(by="color").table.empty
    written = b"".join(path.read_bytes() for path in (tmp_path / "copy").rglob("*") if path.is_file())
    assert b"hunter2" not in written and "hunter2" not in repr(study)


def test_a_bucket_that_is_not_there(bucket):
    nowhere = bucket.replace("s3://bucket", "s3://nowhere")
    with pytest.raises(LensplugError, match="there is no study in"):
        lensplug.Study(nowhere)
    with pytest.raises(LensplugError, match=r"'study.json' of 's3://nowhere.* cannot be written: .*NO_SUCH_BUCKET"):
        lensplug.Study(nowhere, model=MODEL)
