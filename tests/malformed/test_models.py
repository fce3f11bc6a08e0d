"""Broken and hostile model folders, a share of them each day: refused in words, soon, and nothing of them is run."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="each folder is opened in a fork with a limit of its memory")
def test_no_folder_does_harm():
    seed = os.environ.get("LENSPLUG_SEED", str(date.today().toordinal()))
    run = subprocess.run(
        [sys.executable, "-m", "malformed.models", "--share", "0.2", "--stop", "1", "--seed", seed, "--quiet"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path[1:]]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
