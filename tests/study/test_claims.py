"""Claims: who is at work, also where machines, clocks and file systems do not agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pyarrow.fs import _MockFileSystem

from lensplug.study import claims as claims_module
from lensplug.study.arrow_folder import ArrowFolder
from lensplug.study.claims import STALE_S, Claims
from lensplug.study.local_folder import LocalFolder
from lensplug.study.processes import is_alive, this_process

DEAD = 2**22 + 1
"""No process has this number."""


@pytest.fixture(params=["local", "arrow"])
def storage(request, tmp_path):
    if request.param == "local":
        return LocalFolder(tmp_path, "study")
    return ArrowFolder(_MockFileSystem(), "study", "study")


def claimed_by(storage, chunk="chunk", examples=(), **process) -> Claims:
    """The claim of a process like this one, but for what is said."""
    other = Claims(storage, "pass")
    other.process = {**other.process, **process}
    assert other.taken(chunk) and (not examples or other.running(chunk, examples))
    return other


def dead_for_a_while(storage, monkeypatch):
    """Everything in a folder was written long ago."""
    monkeypatch.setattr(type(storage), "age", lambda self, name: STALE_S + 1 if self.exists(name) else float("inf"))


def test_a_chunk_is_claimed_once_and_given_back(storage):
    mine, other = Claims(storage, "pass"), Claims(storage, "pass")
    assert mine.taken("chunk") and not other.taken("chunk") and other.at_work() == ["chunk"]
    assert mine.running("chunk", ["a"]) and mine.holds("chunk")
    mine.released("chunk")
    assert other.at_work() == [] and other.taken("chunk") and other.deaths("chunk")[0] == {}


def test_the_claim_of_a_dead_process_becomes_the_record_of_its_death(storage):
    claimed_by(storage, examples=["a", "b"], pid=DEAD)
    mine = Claims(storage, "pass")
    assert mine.at_work() == [] and mine.taken("chunk")
    assert mine.deaths("chunk") == ({"a": 1, "b": 1}, set())
    mine.forget_deaths("chunk")
    assert mine.deaths("chunk")[0] == {} and mine.holds("chunk")


def test_of_two_that_take_over_the_slower_puts_back_what_the_faster_wrote(storage):
    """It has read the dead claim, and renames that of the faster, which lives."""
    claimed_by(storage, examples=["a"], pid=DEAD)
    faster, slower = Claims(storage, "pass"), Claims(storage, "pass")
    rename = storage.rename

    def renamed_late(name, other):
        storage.rename = rename
        assert faster.taken("chunk") and faster.running("chunk", ["b"])
        return rename(name, other)

    storage.rename = renamed_late
    assert not slower.taken("chunk")
    assert faster.holds("chunk") and faster.deaths("chunk")[0] == {"a": 1}  # and no death of b


def test_many_that_take_over_at_once_end_with_one_that_holds_the_chunk(tmp_path):
    storage = LocalFolder(tmp_path, "study")
    for index in range(20):
        chunk = f"chunk{index}"
        claimed_by(storage, chunk, ["a"], pid=DEAD)
        several = [Claims(storage, "pass") for _ in range(8)]
        barrier = threading.Barrier(8)
        taken: list[Claims] = []

        def take(one, chunk=chunk, barrier=barrier, taken=taken):
            barrier.wait()
            if one.taken(chunk):
                taken.append(one)

        threads = [threading.Thread(target=take, args=(one,)) for one in several]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(one.holds(chunk) for one in taken) == 1


def test_a_process_of_another_machine_or_container_is_believed_alive_until_its_claim_is_old(storage, monkeypatch):
    """Containers may have one name and number their processes alike: a number that is free here says nothing."""
    claimed_by(storage, "a", node="another", pid=DEAD)
    claimed_by(storage, "b", space="another container", pid=DEAD)
    mine = Claims(storage, "pass")
    assert not mine.taken("a") and not mine.taken("b")
    dead_for_a_while(storage, monkeypatch)
    assert mine.taken("a") and mine.taken("b")


def test_a_clock_that_is_an_hour_ahead_makes_nobody_dead(tmp_path, monkeypatch):
    storage = LocalFolder(tmp_path, "study")
    claimed_by(storage, node="another")
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + 3600)
    assert not Claims(LocalFolder(tmp_path, "study"), "pass").taken("chunk")


def test_a_slow_process_sees_that_it_was_taken_over_and_leaves_the_other_alone(storage, monkeypatch):
    slow = claimed_by(storage, examples=["a"], node="another")
    dead_for_a_while(storage, monkeypatch)
    mine = Claims(storage, "pass")
    assert mine.taken("chunk")
    assert not slow.running("chunk", ["b"]) and not slow.holds("chunk")
    slow.released("chunk")
    assert mine.holds("chunk") and mine.running("chunk", ["c"])


def test_claims_may_be_deleted_at_any_time(storage):
    mine = Claims(storage, "pass")
    assert mine.taken("chunk")
    storage.remove("claims/pass/chunk")
    assert mine.running("chunk", ["a"]) and not Claims(storage, "pass").taken("chunk")


def test_what_an_interruption_left_is_no_death_and_is_taken_over(storage):
    """Ctrl-C while claims are given back, in a notebook whose process lives on."""
    interrupted = Claims(storage, "pass")
    assert interrupted.taken("chunk") and interrupted.running("chunk", ["a"])
    remove, storage.remove = storage.remove, None
    with pytest.raises(TypeError):
        interrupted.released_all()
    storage.remove = remove
    mine = Claims(storage, "pass")
    assert mine.taken("chunk") and mine.deaths("chunk")[0] == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"node": 3}'])
def test_a_claim_that_cannot_be_read_is_believed_until_it_is_old(storage, content, monkeypatch):
    storage.write("claims/pass/chunk", content)
    mine = Claims(storage, "pass")
    assert not mine.taken("chunk")
    dead_for_a_while(storage, monkeypatch)
    assert mine.taken("chunk") and mine.deaths("chunk")[0] == {}


def test_a_claim_is_renewed_also_after_an_attempt_failed(storage, monkeypatch):
    monkeypatch.setattr(claims_module, "RENEW_S", 0.01)
    mine = Claims(storage, "pass")
    assert mine.taken("chunk") and mine.running("chunk", ["a"])
    note, written = storage.note, []

    def failing(name, content):
        written.append(content)
        if len(written) < 3:
            raise OSError("stale file handle")
        note(name, content)

    storage.note = failing
    with mine.renewed("chunk"):
        until = time.monotonic() + 10
        while len(written) < 5 and time.monotonic() < until:
            time.sleep(0.01)
    assert len(written) >= 5 and {json.loads(content)["examples"][0] for content in written} == {"a"}


def test_processes_are_known_again_whatever_the_clock_says(monkeypatch):
    described = this_process()
    assert is_alive(described) and described["pid"] == os.getpid()
    if Path("/proc/stat").exists():  # elsewhere the start of a process is a time
        monkeypatch.setattr("psutil.Process.create_time", lambda self: 0.0)
        assert is_alive(described)
    assert is_alive({**described, "started": described["started"] + 1}) is False  # its number was given again
    assert is_alive({**described, "node": "another"}) is None and is_alive({}) is None


def test_a_process_that_has_ended_is_dead_also_before_its_parent_looks():
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    described = {**this_process(), "pid": process.pid, "started": float("nan")}
    from lensplug.study.processes import _started

    described["started"] = _started(process.pid)
    assert is_alive(described)
    process.kill()
    until = time.monotonic() + 10
    while is_alive(described) and time.monotonic() < until:
        time.sleep(0.01)
    assert is_alive(described) is False  # a zombie
    process.communicate()
    assert is_alive(described) is False
