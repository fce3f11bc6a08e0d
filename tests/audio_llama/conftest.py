"""A training of an audio-LLaMA, as it was left."""

from __future__ import annotations

import pytest
from support.trainings import left_by_a_training


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Base, acoustic model, two adapters, and the modules at the end of the training."""
    root = tmp_path_factory.mktemp("training")
    return root, *left_by_a_training(root)
