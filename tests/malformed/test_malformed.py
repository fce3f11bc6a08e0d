"""Malformed calls of the public functions, a few functions each day: refused in words, or they work."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_no_malformed_call_ends_in_a_raw_traceback():
    seed = os.environ.get("LENSPLUG_SEED", str(date.today().toordinal()))
    # A program of its own: here another tool checks the annotations, and its errors would stand for the package's.
    run = subprocess.run(
        [sys.executable, "-m", "malformed.calls", "--share", "0.06", "--seed", seed],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path[1:]]), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
