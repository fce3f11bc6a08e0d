"""Workers are kept at work until every chunk is done: with workers of the test's, and with processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.killed_studies import differences, environment, pictures, study_of
from support.signals import heed_signals

import lensplug
from lensplug import LensplugError, analysis
from lensplug.files.atomic_write import UNFINISHED
from lensplug.study import passes, supervision
from lensplug.study.local import run_processes
from lensplug.study.progress import Progress
from lensplug.study.supervision import DEATHS_IN_A_ROW, supervise

EVERYTHING = {"rows": 18, "distinct": 18, "missing": 0, "different": 0, "chunks": 6}


class Chunks:
    """Progress on chunks that the workers of a test do."""

    def __init__(self, chunks: int) -> None:
        self.chunks, self.done = chunks, 0

    def look(self) -> int:
        return self.done

    def is_work_left(self) -> bool:
        return True


class Scripted:
    """A worker that does what its script says at each look: a number of chunks, or how it ends."""

    def __init__(self, chunks: Chunks, script: list[int | str | Exception | BaseException]) -> None:
        self.chunks, self.script = chunks, list(script)
        self.calls: list[str] = []

    def ended(self) -> str | None:
        step = self.script.pop(0) if self.script else 0
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, str):
            return step
        self.chunks.done += step
        return None

    def ask_to_end(self) -> None:
        self.calls.append("asked")

    def end(self, longest_s: float) -> None:
        self.calls.append("ended" if longest_s else "killed")


@pytest.fixture
def supervised():
    """Run scripts; the workers that were started."""

    def run(chunks, scripts, count=2):
        started: list[Scripted] = []

        def start(number):
            new = [Scripted(chunks, scripts.pop(0)) for _ in range(number)]
            started.extend(new)
            return new

        supervise(start, count, chunks, 0.001)
        return started

    return run


def test_one_that_dies_is_replaced_and_all_are_ended(supervised):
    started = supervised(Chunks(3), [["was killed"], [0, 0, 1], [1, 0, 0, 0, 1]])
    assert [worker.calls for worker in started] == [["killed"], ["asked", "ended"], ["asked", "ended"]]


def test_when_all_have_finished_and_a_chunk_is_left_they_start_again(supervised):
    assert len(supervised(Chunks(3), [[1, ""], [1, ""], ["was killed"], [0], [1]])) == 5


def test_they_wait_while_a_living_process_has_what_is_left(supervised):
    class OfOthers(Chunks):
        looks = 0

        def look(self) -> int:
            self.looks += 1
            self.done += self.looks == 40  # the other process has finished
            return self.done

        def is_work_left(self) -> bool:
            return self.looks < 3

    chunks = OfOthers(2)
    assert len(supervised(chunks, [[1, ""], [""]])) == 2 and chunks.looks == 40


def test_workers_that_keep_dying_end_the_run_and_those_that_get_on_do_not(supervised):
    with pytest.raises(LensplugError, match="5 processes of this study died, and no chunk .* the last was killed"):
        supervised(Chunks(3), [["was killed"]] * DEATHS_IN_A_ROW, count=1)
    dying = [["was killed"]] * (DEATHS_IN_A_ROW - 2)
    assert len(supervised(Chunks(2), [*dying, [1, "was killed"], *dying, [1]], count=1)) == 2 * DEATHS_IN_A_ROW - 2


def test_a_machine_with_many_workers_may_go(supervised):
    assert len(supervised(Chunks(1), [["went with its machine"]] * 8 + [[0]] * 7 + [[1]], count=8)) == 16


@pytest.mark.parametrize("error", [LensplugError("the weights are others"), KeyboardInterrupt()])
def test_an_error_and_ctrl_c_end_all_workers(error):
    workers = [Scripted(Chunks(2), [0, error]), Scripted(Chunks(2), [])]
    with pytest.raises(type(error)):
        supervise(lambda number: workers, 2, Chunks(2), 0.001)
    assert [worker.calls for worker in workers] == [["asked", "ended"]] * 2


def test_a_second_ctrl_c_kills_them(monkeypatch):
    class Stubborn(Scripted):
        def end(self, longest_s):
            super().end(longest_s)
            if longest_s:
                raise KeyboardInterrupt

    workers = [Stubborn(Chunks(1), [KeyboardInterrupt()]), Stubborn(Chunks(1), [])]
    with pytest.raises(KeyboardInterrupt):
        supervise(lambda number: workers, 2, Chunks(1), 0.001)
    assert [worker.calls[-1] for worker in workers] == ["killed"] * 2
    assert supervision.END_S < 60


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    pictures(folder, 18)
    return folder


@pytest.fixture(scope="module")
def quiet(scenes, tmp_path_factory) -> Path:
    """What one process gives."""
    folder = tmp_path_factory.mktemp("studies") / "quiet"
    study_of(folder, scenes, 3).run()
    return folder


def test_two_processes_and_ctrl_c_with_nobody_who_reads_what_is_printed(scenes, quiet, tmp_path):
    study = study_of(tmp_path / "study", scenes, 3)
    command = [sys.executable, "-m", "lensplug", "study", "run", str(tmp_path / "study"), "--devices", "cpu,cpu"]
    closed = 'exec "$@" >&- 2>&-'
    driver = subprocess.Popen(
        ["sh", "-c", closed, "sh", *command], env=environment(), stdin=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=heed_signals,
    )  # fmt: skip
    until = time.monotonic() + 240
    while not list((tmp_path / "study").glob("results/*/*.parquet")):
        assert driver.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: the driver and its workers
    assert driver.wait(60) == 130
    done = study.progress()
    assert 0 < done.done.sum() < 18 and done.failed.sum() == 0 and done.chunks_at_work.tolist() == [0]
    assert [path for path in (tmp_path / "study/claims").rglob("*") if path.is_file()] == []  # and no deaths
    assert not list((tmp_path / "study").rglob(f"{UNFINISHED}*"))
    study.run()
    assert differences(tmp_path / "study", quiet) == EVERYTHING


def test_an_error_of_a_worker_is_that_of_the_run(scenes, tmp_path):
    study = lensplug.Study(tmp_path / "study", model="lensplug.tiny:llava_onevision", chunk=3)
    study.add_folder(scenes, prompt="What?")
    study.measure(analysis.logit_lens, target="no word of this model")
    running = passes.to_run(study.storage, study.identity, ["x"], new_versions=False)
    with (
        pytest.raises(LensplugError, match="^every one of the first 3 examples failed"),
        Progress({"x": 3}, running, study.storage) as progress,
    ):
        run_processes(study.storage.address, ["cpu"], {"batch": 3}, progress)
    assert study.progress().chunks_at_work.tolist() == [0]
