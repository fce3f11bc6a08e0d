"""The random tiny LLaVA-OneVision, wrapped once for all tests; nobody may leave a change on it.

A plugin of pytest, registered by `tests/conftest.py` in the processes that run tests. There `LENSPLUG_ENGINE=bridge`
takes the bridge wherever a test does not ask for an engine; TransformerLens 4 has no other.
"""

from __future__ import annotations

import gc

import pytest
import torch

import lensplug
from lensplug import engines
from support.built import ONE_ENGINE
from support.models import QUESTION, llava_onevision, scene, snapshot

if ONE_ENGINE:
    engines.ENGINES = {ONE_ENGINE: engines.ENGINES[ONE_ENGINE], **engines.ENGINES}  # "auto" takes the first

torch.set_num_threads(1)  # the models are tiny: threads that wait for each other made it thirty times slower


def pytest_collection_finish():
    """A million objects of imported modules stay: without them a search for garbage takes no third of a second."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def trainable_as_before(lens):
    """Every test ends with the parameters trainable that were so, and with no gradient on any."""
    before = [parameter.requires_grad for parameter in lens.model.parameters()]
    assert any(before), "an earlier test has left them frozen"
    yield
    assert [parameter.requires_grad for parameter in lens.model.parameters()] == before
    assert all(parameter.grad is None for parameter in lens.model.parameters())
