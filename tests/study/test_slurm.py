"""A study by jobs of submitit's, run on this machine, gives the bytes of one process. `make test-cluster`."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.killed_studies import differences, environment, pictures, study_of

import lensplug
from lensplug import LensplugError, analysis

if not os.environ.get("LENSPLUG_TEST_CLUSTER"):
    pytest.skip("minutes; make test-cluster runs it", allow_module_level=True)
submitit = pytest.importorskip("submitit")
HERE: dict[str, Any] = {"executor": "slurm", "cluster": "local", "gpus_per_node": 0}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    pictures(folder, 40)
    return folder


@pytest.fixture(autouse=True)
def imports(monkeypatch):
    """What jobs import is in the environment."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


def signalled(folder: Path, chunks: int, number: signal.Signals) -> threading.Thread:
    """When some chunks are done, send a signal to a process that has one."""

    def send() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if len(list(folder.glob("results/*/*.parquet"))) >= chunks:
                for claim in folder.glob("claims/*/*"):
                    try:
                        os.kill(json.loads(claim.read_text())["pid"], number)
                        return
                    except (OSError, ValueError):
                        continue
            time.sleep(0.01)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def test_a_job_is_preempted_and_one_is_killed(scenes, tmp_path):
    """The first is queued again by submitit, the second replaced."""
    quiet, folder = tmp_path / "quiet", tmp_path / "study"
    study_of(quiet, scenes, 4).run()
    study = study_of(folder, scenes, 4)
    preempted = signalled(folder, 1, signal.SIGUSR2)
    killed = signalled(folder, 5, signal.SIGKILL)
    study.run(**HERE, workers=2, timeout_min=30)
    preempted.join()
    killed.join()
    assert differences(folder, quiet) == {"rows": 40, "distinct": 40, "missing": 0, "different": 0, "chunks": 10}
    assert study.failures().empty and study.progress().chunks_at_work.tolist() == [0]
    said = "".join(path.read_text() for path in folder.glob("logs/*/*.err"))
    assert "this job is preempted" in said and "Requeued job" in said


def test_an_error_of_a_job_is_that_of_the_run(scenes, tmp_path):
    study = lensplug.Study(tmp_path / "study", model="lensplug.tiny:llava_onevision")
    study.add_folder(scenes, prompt="What?")
    study.measure(analysis.logit_lens, target="no word of this model")
    with pytest.raises(LensplugError, match="^every one of the first 40 examples failed"):
        study.run(**HERE, logs=tmp_path / "logs")
    assert list((tmp_path / "logs").iterdir()) and not (tmp_path / "study/logs").exists()


def test_what_submitit_cannot_do_is_said(scenes, tmp_path):
    study = study_of(tmp_path / "study", scenes, 4)
    with pytest.raises(LensplugError, match="submitit refuses"):
        study.run(executor="slurm")  # there is no SLURM here
    with pytest.raises(LensplugError, match="submitit refuses.*no_such_parameter"):
        study.run(**HERE, no_such_parameter=3)
    with pytest.raises(LensplugError, match="workers is 0"):
        study.run(**HERE, workers=0)
