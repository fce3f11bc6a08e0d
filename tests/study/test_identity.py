"""What a study is of: another model, other weights, options or versions are refused by what differs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.scene_studies import MODEL

import lensplug
from lensplug import LensplugError, analysis
from lensplug.study import Study


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


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no_such_module:load", "cannot be imported: No module named 'no_such_module'. Start where it can be"),
        ("lensplug.tiny:nothing", "cannot be imported: .*nothing"),
        ("lensplug.tiny:CHECKPOINTS", "expected a function that returns a lens"),
        ("/nowhere/model", "there is no such folder"),
        (Path("model"), "there is no such folder"),
        ("no name of the hub", "could not be found"),
    ],
)
def test_a_study_that_could_never_run_is_not_begun(tmp_path, model, message):
    with pytest.raises(LensplugError, match=message):
        Study(tmp_path / "study", model=model)
    assert not (tmp_path / "study" / "study.json").exists()


def test_a_study_is_opened_where_its_function_is_not(tmp_path, monkeypatch):
    (tmp_path / "my_models_for_this_test.py").write_text("def load(): pass")
    with monkeypatch.context() as path:
        path.syspath_prepend(str(tmp_path))
        begun = Study(tmp_path / "study", model="my_models_for_this_test:load")
    monkeypatch.delitem(sys.modules, "my_models_for_this_test")
    assert Study(tmp_path / "study", model="my_models_for_this_test:load").identity == begun.identity


def test_a_link_to_nothing_in_a_models_folder_is_named(tmp_path):
    from lensplug.tiny import CHECKPOINTS

    shutil.copytree(CHECKPOINTS / "llava-onevision", tmp_path / "model")
    (tmp_path / "model" / "vocab.txt").symlink_to("nowhere")
    with pytest.raises(LensplugError, match="'vocab.txt' of the model's folder cannot be read: No such file"):
        Study(tmp_path / "study", model=tmp_path / "model")


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


def test_a_lens_of_something_else_is_refused(tmp_path, lens):
    from lensplug.tiny import CHECKPOINTS

    study = Study(tmp_path / "study", model=CHECKPOINTS / "audio-llama", dtype="float64")
    study.add(pd.DataFrame({"prompt": ["What?"]}))
    study.measure(analysis.logit_lens)
    with pytest.raises(LensplugError, match="dtype: 'float64' there, 'float32' given; model: 'audio-llama' there"):
        study.run(lens=lens)
