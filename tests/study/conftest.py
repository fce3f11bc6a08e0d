"""A study of ten scenes (`finished`, and `copied` to be changed); a server that speaks S3's protocol (`bucket`)."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from support.models import QUESTION
from support.scene_studies import MODEL

import lensplug
from lensplug import analysis
from lensplug.study import Study
from lensplug.tiny.scenes import draw_scene

SIZES = ((48, 48), (96, 48), (96, 96))
_numbers = itertools.count()
ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "hunter2",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What the environment says: pyarrow and boto3 read it, and so do processes that are started."""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Its host and port; an account is in the environment, for processes that are started too."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    before = {name: os.environ.get(name) for name in ACCOUNT}
    os.environ.update(ACCOUNT)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def bucket(s3_server) -> str:
    """The address of a folder in a new bucket."""
    import boto3

    name = f"bucket{next(_numbers)}"
    boto3.client("s3", endpoint_url=f"http://{s3_server}").create_bucket(Bucket=name)
    return f"s3://{name}/studies/flowers?endpoint_override={s3_server}&scheme=http"


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


@pytest.fixture(scope="session")
def three_colors(tmp_path_factory) -> pd.DataFrame:
    """A picture of each of three colors, its answer, and a number to know it by."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for index, color in enumerate(("red", "blue", "green")):
        path = folder / f"{index}.png"
        draw_scene(random.Random(index), size=(48, 48), color=color).image.save(path)
        rows.append({"prompt": QUESTION, "image": str(path), "target": color.capitalize(), "number": index})
    return pd.DataFrame(rows)
