"""The random tiny LLaVA-OneVision, wrapped once for all tests; nobody may leave a change on it."""

from __future__ import annotations

import pytest
import torch
from models import QUESTION, llava_onevision, scene, snapshot

import lensplug

torch.set_num_threads(1)  # the models are tiny: threads that wait for each other made it thirty times slower


@pytest.fixture(scope="session")
def lens():
    model, processor = llava_onevision()
    return lensplug.wrap(model, processor)


@pytest.fixture(scope="session")
def folded_lens(lens):
    """The same model with processed weights."""
    return lensplug.wrap(lens.hf_model, lens.processor, process_weights=True)


@pytest.fixture(scope="session")
def picture():
    return scene(96, 48)


@pytest.fixture(scope="session")
def inputs(lens, picture):
    """One prompt with one picture."""
    return lens.prepare(QUESTION, images=[picture])


@pytest.fixture(scope="session")
def batch(lens):
    """Three prompts of different lengths, padded at the left; the last has no picture."""
    questions = [QUESTION, "What is the shape? " + QUESTION, QUESTION]
    return lens.prepare(questions, images=[[scene(48, 48, 1)], [scene(80, 64, 2)], []])


@pytest.fixture
def unchanged(lens):
    """The lens's model is after the test what it was before."""
    before = snapshot(lens.model)
    yield
    assert snapshot(lens.model) == before
