"""Edits written as JSON are read back as edits that do the same, and have the same words."""

from __future__ import annotations

import json

import pytest
import torch
from support.models import text_model, text_tokens

import lensplug
from lensplug import LensplugError
from lensplug.interventions import Ablate, Knockout, Region, Replace, Scale, Seconds, Steer, Words
from lensplug.interventions.as_json import from_json, to_json
from lensplug.interventions.edit import Edit

MEANS = {"blocks.1.attn.hook_z": torch.arange(32.0).view(4, 8) / 7}
EDITS: list[Edit] = [
    Knockout(from_="image", to="last", layers=range(1, 3)),
    Knockout(from_=("text", "image"), heads=[(0, 1), (2, 3)], own=True),
    Knockout(from_=Region((0, 1.5, 10, 20), at_least=0.5), to=Words("the color?")),
    Knockout(from_=Seconds(0.5, 1), to=[-1, -2], layers=2),
    Steer(torch.randn(2, 32), layers=[0, 1], scale=0.3, positions="last"),
    Scale(heads=[(1, 0)], factor=2),
    Ablate("attn_out", layers=1),
    Ablate(heads=[2], layers=[1], method="mean", values=MEANS),
    Ablate(neurons={1: [3, 7], 2: [0]}),
    Replace(torch.randn(1, 12, 32), at="resid_mid", layers=1, positions=[5]),
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: type(edit).__name__)
def test_words_and_json_stay(edit):
    stored = to_json(edit)
    again = from_json(json.loads(json.dumps(stored)))
    assert type(again) is type(edit) and to_json(again) == stored
    assert str(again) == str(edit)


def test_what_is_read_back_does_the_same():
    lens = lensplug.wrap(text_model("qwen2"))
    inputs = lens.encode({"input_ids": text_tokens(12)})
    for edit in EDITS[4:]:
        with torch.no_grad(), lens.intervene(edit):
            expected = lens.model(inputs)
        with torch.no_grad(), lens.intervene(from_json(json.loads(json.dumps(to_json(edit))))):
            assert torch.equal(lens.model(inputs), expected)
        assert not torch.equal(lens.model(inputs), expected)


def test_an_unknown_edit_is_refused():
    with pytest.raises(LensplugError, match="this version knows"):
        from_json({"edit": "Vanish"})
