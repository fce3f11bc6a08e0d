"""Long runs say so before they start, short ones say nothing."""

from __future__ import annotations

import warnings
from importlib import import_module

import pytest
import torch

from lensplug import analysis
from lensplug.analysis.interventions import runtime_warning


@pytest.fixture
def slow(monkeypatch):
    """Every run seems to take ten seconds."""
    clock = iter(range(0, 10**6, 10))
    for name in ("patching_sweep", "deletion_curve"):
        module = import_module(f"lensplug.analysis.interventions.{name}")  # the door has the function
        monkeypatch.setattr(module, "perf_counter", lambda: float(next(clock)))


def patch(lens, inputs):
    words = torch.where(inputs.attention_mask.bool(), torch.arange(inputs.tokens.shape[1]) // 40, -1)
    return analysis.activation_patching(lens, inputs, inputs, 5, groups=words, batch=1)


def delete(lens, inputs):
    return analysis.deletion_curve(lens, inputs, torch.rand(inputs.tokens.shape), 5, steps=2, draws=20, batch_size=2)


def test_long_runs_say_how_many_and_how_long(lens, inputs, slow):
    said = r"activation_patching: 23 runs to come, about 2 minutes .*5.8 s.*groups="
    with pytest.warns(UserWarning, match=said) as warned:
        patch(lens, inputs)
    assert len(warned) == 1, "once"
    with pytest.warns(UserWarning, match=r"deletion_curve: \d+ runs to come, about \d+ minutes .*steps=, draws="):
        delete(lens, inputs)


def test_short_runs_say_nothing(lens, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch(lens, inputs)
        delete(lens, inputs)
        runtime_warning.announce("x", 59, 1.0, shorter="less")


def test_the_number_of_runs_and_minutes():
    with pytest.warns(UserWarning, match="144 runs to come, about 5 minutes"):
        runtime_warning.announce("activation_patching", 144, 2.0, shorter="groups=")
