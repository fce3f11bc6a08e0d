"""decoder_inputs: what a core is given besides goes along with examples, positions and answers, each its way."""

from __future__ import annotations

import pytest
import torch
from support.beside import FAMILIES, wrapped

from lensplug import LensplugError
from lensplug.patches.decoder_inputs import (
    depend_on_others,
    of_an_answer,
    of_examples,
    of_positions,
    on_device,
)

PARTS = torch.tensor([[[0, 1, 1, 2], [0, 0, 0, 3]], [[0, 1, 5, 2], [0, 0, 0, 3]], [[0, 1, 1, 2], [0, 0, 0, 3]]])
"""[part example pos]: an image's row reaches 5 in the first example."""


def test_examples_and_positions_are_those_of_each_axis():
    mask = torch.arange(2 * 4 * 4).view(2, 1, 4, 4)
    index = torch.tensor([1, 1, 0])
    assert torch.equal(of_examples("position_ids", PARTS, index), PARTS[:, index])
    assert torch.equal(of_examples("attention_mask", {"full": mask}, index)["full"], mask[index])
    assert of_examples("position_ids", PARTS[:, :1], index).shape == (3, 3, 4)
    assert of_examples("attention_mask", None, index) is None
    assert torch.equal(of_positions("position_ids", PARTS, slice(1, 3)), PARTS[..., 1:3])
    assert torch.equal(of_positions("position_ids", PARTS[0], slice(2)), PARTS[0, :, :2]), "of one part"
    assert torch.equal(of_positions("attention_mask", mask, slice(2)), mask[:, :, :2, :2])


def test_an_answer_goes_on_behind_the_largest_position_and_has_no_mask_of_the_prompt():
    step = of_an_answer({"position_ids": PARTS, "attention_mask": torch.ones(2, 1, 4, 4)}, 4, 6)
    assert step.keys() == {"position_ids"}
    assert step["position_ids"].tolist() == [[[8], [6]]] * 3
    with_text = torch.cat([torch.arange(4).expand(1, 2, 4) + 90, PARTS])
    assert torch.equal(of_an_answer({"position_ids": with_text}, 4, 6)["position_ids"], step["position_ids"])
    assert of_an_answer({"position_ids": PARTS[1]}, 4, 4)["position_ids"].tolist() == [[6], [4]]
    assert of_an_answer({"attention_mask": None}, 4, 4) == {} == of_an_answer({"position_ids": None}, 4, 4)


def test_no_mask_is_one_too():
    assert depend_on_others({"attention_mask": None, "position_ids": PARTS})
    assert not depend_on_others({"position_ids": PARTS})


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_move_with_what_their_core_is_given(family):
    lens, prompts = wrapped(family), FAMILIES[family][1]
    moved = lens.encode(prompts(12, 9)).to("meta")
    assert moved.decoder_inputs.keys() == set(lens.core.beside)
    for value in moved.decoder_inputs.values():
        for held in value.values() if isinstance(value, dict) else [value]:
            assert held.device.type == "meta"
    assert on_device({"attention_mask": None}, "meta") == {"attention_mask": None}


def test_each_that_is_missing_is_told():
    lens = wrapped("qwen2-vl")
    inputs = lens.encode(FAMILIES["qwen2-vl"][1](12))
    with pytest.raises(LensplugError, match="given position_ids by its model"):
        lens.model(inputs.embeds)
