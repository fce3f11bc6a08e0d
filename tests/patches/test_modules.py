"""The list of modules against torch's own."""

from __future__ import annotations

from torch import nn

from lensplug.patches.modules import every_module


def test_it_is_torchs_own_list(lens):
    for model in (lens.hf_model, lens.model):
        found = every_module(model)
        assert found[0] is model and len(found) == len(set(found)) and set(found) == set(model.modules())


def test_what_is_shared_is_there_once():
    shared = nn.Linear(2, 2)
    first, second = nn.Sequential(shared, nn.ReLU()), nn.Sequential(nn.Tanh(), shared)
    first.register_module("none", None)
    assert every_module(first, second) == [first, second, *first[:2], second[0]]
