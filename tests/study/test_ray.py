"""A study on a Ray cluster whose actors and machines are killed gives the bytes of one process. `make test-cluster`."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from support.killed_studies import differences, environment, pictures, study_of
from support.poisoned import POISON

import lensplug
from lensplug import LensplugError, analysis

if not os.environ.get("LENSPLUG_TEST_CLUSTER"):
    pytest.skip("minutes; make test-cluster runs it", allow_module_level=True)
ray = pytest.importorskip("ray")
MACHINE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    pictures(folder, 60)
    return folder


@pytest.fixture(scope="module")
def quiet(scenes, tmp_path_factory) -> Path:
    """What one process gives."""
    folder = tmp_path_factory.mktemp("studies") / "quiet"
    study_of(folder, scenes, 4).run()
    return folder


@pytest.fixture(scope="module")
def cluster():
    """A machine, to which others are added; what its processes import is in the environment."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patched:
        for name, value in {**environment(), "RAY_USAGE_STATS_ENABLED": "0"}.items():
            patched.setenv(name, value)
        started = Cluster(initialize_head=True, head_node_args={**MACHINE, "include_dashboard": False})
        yield started
        ray.shutdown()
        started.shutdown()


def when_done(folder: Path, chunks: int, then) -> threading.Thread:
    """Do something when some chunks of a study are done."""

    def wait() -> None:
        until = time.monotonic() + 120
        while len(list(folder.glob("results/*/*.parquet"))) < chunks and time.monotonic() < until:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def kill_a_worker(folder: Path) -> None:
    """With SIGKILL, while it has a chunk."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for claim in folder.glob("claims/*/*"):
            try:
                os.kill(json.loads(claim.read_text())["pid"], signal.SIGKILL)
                return
            except (OSError, ValueError):
                continue


def test_an_actor_and_a_machine_are_killed(cluster, scenes, quiet, tmp_path):
    folder = tmp_path / "study"
    study = study_of(folder, scenes, 4)
    machine = cluster.add_node(**MACHINE)
    first = when_done(folder, 2, lambda: kill_a_worker(folder))
    second = when_done(folder, 5, lambda: cluster.remove_node(machine, allow_graceful=False))
    study.run(executor="ray", address=cluster.address, workers=2)
    first.join()
    second.join()
    assert differences(folder, quiet) == {"rows": 60, "distinct": 60, "missing": 0, "different": 0, "chunks": 15}
    assert study.failures().empty and not ray.is_initialized()
    assert study.progress().chunks_at_work.tolist() == [0]


def test_an_example_that_kills_its_actor_is_set_aside(cluster, scenes, tmp_path):
    study = lensplug.Study(tmp_path / "study", model="support.poisoned:llava_onevision", chunk=2)
    picture = str(next(scenes.rglob("*.png")))
    study.add(pd.DataFrame({"prompt": [POISON, "What?", "Why?"], "image": [picture] * 3}))
    study.measure(analysis.head_specialization)
    study.run(executor="ray", address=cluster.address, max_restarts=1)
    assert study.failures().error_type.tolist() == ["KilledItsProcess"] and study.progress().done.tolist() == [2]


def test_ctrl_c_gives_chunks_back_and_an_error_is_a_sentence(cluster, scenes, tmp_path):
    folder = tmp_path / "study"
    study = study_of(folder, scenes, 4)
    thread = when_done(folder, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        study.run(executor="ray", address=cluster.address)
    thread.join()
    assert not ray.is_initialized() and 0 < study.progress().done.sum() < 60
    assert [path for path in folder.glob("claims/*/*") if path.is_file()] == []
    hopeless = lensplug.Study(tmp_path / "hopeless", model="lensplug.tiny:llava_onevision")
    hopeless.add_folder(scenes, prompt="What?")
    hopeless.measure(analysis.logit_lens, target="no word of this model")
    with pytest.raises(LensplugError, match="^every one of the first 60 examples failed"):
        hopeless.run(executor="ray", address=cluster.address)


def test_what_ray_cannot_do_is_said_and_nothing_is_left_running(scenes, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    study = study_of(tmp_path / "study", scenes, 4)
    with pytest.raises(LensplugError, match=r"has the 1 GPUs and 1 CPU cores of a worker .* the most are 0 and"):
        study.run(executor="ray", gpus_per_worker=1)
    assert not ray.is_initialized()
    with pytest.raises(LensplugError, match="Ray cannot be reached at '127.0.0.1:1'"):
        study.run(executor="ray", address="127.0.0.1:1")
    with pytest.raises(LensplugError, match="unexpected keyword argument 'gpus'. Its arguments are .*gpus_per_worker"):
        study.run(executor="ray", gpus=2)
    with pytest.raises(LensplugError, match="devices= are this machine's"):
        study.run(executor="ray", devices=["cpu", "cpu"])
    assert not ray.is_initialized()
