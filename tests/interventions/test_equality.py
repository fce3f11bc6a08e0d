"""Edits with the same options are equal and have one hash; tensors in them are compared by their numbers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from lensplug.interventions import Ablate, Knockout, Region, Replace, Scale, Seconds, SpliceSAE, Steer


def mask(n):
    return torch.arange(300)[None] == n


def cache(value):
    return {"blocks.0.hook_resid_pre": torch.full((1, 4, 8), value)}


class SAE:
    cfg = type("Config", (), {"hook_name": "blocks.0.hook_resid_pre"})

    def encode(self, x): ...

    def decode(self, x): ...

    def __call__(self, x): ...


ONE_SAE = SAE()
PAIRS = {
    "names": (
        lambda: Knockout("image", "last", layers=range(2, 5)),
        lambda: Knockout("image", "all", layers=range(2, 5)),
    ),
    "masks": (lambda: Knockout(mask(5)), lambda: Knockout(mask(6))),
    "arrays": (lambda: Knockout(mask(5).numpy()), lambda: Knockout(mask(6).numpy())),
    "regions": (lambda: Knockout(Region((0, 0, 8, 8))), lambda: Knockout(Region((0, 0, 8, 9)))),
    "seconds": (lambda: Knockout(Seconds(0, 1.0)), lambda: Knockout(Seconds(0, 1.5))),
    "directions": (lambda: Steer(torch.ones(8), layers=1), lambda: Steer(torch.ones(9), layers=1)),
    "scales": (lambda: Steer(torch.ones(8), scale=2), lambda: Steer(torch.ones(8), scale=2.5)),
    "caches": (lambda: Replace(cache(1.0), layers=0), lambda: Replace(cache(2.0), layers=0)),
    "neurons": (lambda: Ablate(neurons={2: [3, 7]}), lambda: Ablate(neurons={2: [3, 8]})),
    "means": (
        lambda: Ablate("mlp_out", method="mean", values=cache(1.0)),
        lambda: Ablate("mlp_out", method="mean", values=cache(2.0)),
    ),
    "heads": (lambda: Scale(heads=[(1, 0)], factor=2.0), lambda: Scale(heads=[(1, 1)], factor=2.0)),
    "latents": (lambda: SpliceSAE(ONE_SAE, latents={3: 0.0}), lambda: SpliceSAE(ONE_SAE, latents={4: 0.0})),
    "an SAE of its own": (lambda: SpliceSAE(ONE_SAE), lambda: SpliceSAE(SAE())),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equal_edits_are_equal_and_others_are_not(name):
    made, other = PAIRS[name]
    assert made() == made() and not made() != made() and hash(made()) == hash(made())
    assert made() != other() and other() != made()
    assert made() in [other(), made()] and len({made(), made(), other()}) == 2
    assert copy.copy(made()) == made() and made() != "image"
    # The words for provenance differ, too: they are what a result says of its edits.
    assert name == "an SAE of its own" or str(made()) == str(made()) != str(other())


def test_a_list_is_a_range_and_two_is_two():
    assert Knockout("image", layers=[2, 3]) == Knockout("image", layers=range(2, 4)) == Knockout("image", layers=(2, 3))
    assert Scale(heads=[(1, 0)], factor=2) == Scale(heads=((1, 0),), factor=2.0)
    assert Knockout([0, 1]) != Knockout([False, True]) and Knockout("image") != Steer(torch.ones(2))
    assert hash(Knockout("image", layers=[2, 3])) == hash(Knockout("image", layers=range(2, 4)))


def test_words_of_long_arrays_say_which():
    positions = (np.arange(2000), np.arange(2000) + (np.arange(2000) == 1000))
    assert len({str(Knockout(each)) for each in positions}) == 2
