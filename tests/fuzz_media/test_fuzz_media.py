"""Some of the files of `make fuzz-media`, other ones each day."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from fuzz_media import run
from fuzz_media.mutate import mutated
from fuzz_media.repair import REPAIRS
from fuzz_media.run import content_of, run_kind
from fuzz_media.seeds import SEEDS, seeds_of
from lensplug.errors import LensplugError

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="nothing is forked here")
FILES = 20
TESTS = Path(__file__).parents[1]
AS_TEXT: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 600}
KINDS = [kind for kinds in SEEDS.values() for kind in kinds]


def test_every_file_is_read_before_it_is_mutated():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # animations have several frames
        for kind in KINDS:
            for content in seeds_of(kind):
                run.read(kind, content)
                assert REPAIRS.get(kind, bytes)(content) == content, "its checksums are right"


def test_mutated_files_are_read_or_refused():
    """In a fresh process, which forks others: after PyAV has read a video here, it would hang in a fork."""
    command = [sys.executable, "-m", "fuzz_media", "--files", str(FILES)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(TESTS), "COLUMNS": "120"}, **AS_TEXT)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    total = next(line for line in done.stdout.splitlines() if " all " in line)
    tried, refused, read, failures = (int(cell.replace(",", "")) for cell in total.split("│")[2:6])
    assert tried == len(KINDS) * FILES == refused + read and failures == 0
    assert min(read, refused) > tried / 10


def test_a_file_follows_from_its_number():
    one, again, other = (content_of("png", number, 7) for number in (1, 1, 2))
    assert one == again != other
    assert len({mutated([b"abc" * 100], random.Random(number)) for number in range(50)}) > 45


def _ends(kind, content):
    number = len(content) % 7
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 2:
        raise KeyError("what users should not see")
    if number == 3:
        raise MemoryError
    if number == 4:
        raise LensplugError("refused")
    if number == 5:
        while True:
            pass


def test_what_fails_is_seen_and_the_others_are_tried(monkeypatch):
    monkeypatch.setattr(run, "read", _ends)
    monkeypatch.setattr(run, "SLOW_S", 0.1)
    monkeypatch.setattr(run, "content_of", lambda kind, number, seed: bytes(number))
    row = run_kind("png", 10, 0)
    assert dict(row.failures) == {"crash -11": 2, "KeyError": 2, "MemoryError": 1, "hangs": 1}
    assert (row.tried, row.refused, row.read) == (10, 1, 3)
    assert any("--only 'png' --file 8" in message for message in row.messages)
