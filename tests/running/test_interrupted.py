"""After a run that was interrupted at any place everything is as it was before; a seed of its own each day."""

from __future__ import annotations

import os
from datetime import datetime, timezone

import pytest
from support.built import ENGINES
from support.interruptions import interrupted

COUNT = int(os.environ.get("LENSPLUG_INTERRUPTIONS", "120"))
SEED = int(os.environ.get("LENSPLUG_SEED", datetime.now(timezone.utc).strftime("%Y%m%d")))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_state_after_interrupted_runs_is_the_state_before(engine):
    outcome = interrupted(COUNT // 2, SEED, (engine,))
    assert not outcome.left, "\n".join(outcome.left)
    assert outcome.interrupted > 0.5 * outcome.cases, outcome
