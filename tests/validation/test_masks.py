"""Every mask of the public interface: True and False, 1 and 0 of any dtype and form are one; nothing else is a mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.built import ENGINES
from support.caches import cache_of_patterns, causal_patterns
from support.models import QUESTION, llava_onevision, scene

import lensplug
from lensplug import LensplugError, analysis
from lensplug.geometry import ImageGrid
from lensplug.positions.groups import Groups
from lensplug.positions.modality_map import ModalityMap
from lensplug.validation.masks import as_mask

FORMS = {
    "bool": lambda mask: mask,
    "long": lambda mask: mask.long(),
    "uint8": lambda mask: mask.to(torch.uint8),
    "float": lambda mask: mask.float(),
    "bfloat16": lambda mask: mask.bfloat16(),
    "array": lambda mask: mask.numpy(),
    "array of floats": lambda mask: mask.numpy().astype(np.float64),
    "list": lambda mask: mask.tolist(),
    "list of numbers": lambda mask: mask.long().tolist(),
}
REFUSED = {
    "additive": (lambda mask: torch.zeros(mask.shape).masked_fill(~mask, -torch.inf), "holds -inf, expected True and"),
    "weights": (lambda mask: mask.float() * 0.5, "holds 0.5"),
    "NaN": (lambda mask: mask.float().masked_fill(mask, torch.nan), "holds NaN"),
    "minus one": (lambda mask: -mask.long(), "holds -1"),
    "longer": (lambda mask: torch.cat([mask, mask], dim=-1), "has the shape"),
    "another rank": (lambda mask: mask[..., None], "has the shape"),
    "words": (lambda mask: "no modality", "is a str|'no modality', expected|needs to know"),
    "ragged": (lambda mask: [[1], [1, 0]], "expected a mask"),
}


@pytest.fixture(scope="module", params=ENGINES)
def case(request):
    lens = lensplug.wrap(*llava_onevision(), engine=request.param)
    return lens, lens.prepare([QUESTION, "What?"], images=[[scene(48, 48)], [scene(48, 48, 1)]])


def doors(lens, inputs):
    """Where a mask goes in, and a right one: name -> (a function of the mask, the mask)."""
    image, real = inputs.modality.mask("image"), inputs.attention_mask.bool()
    rows = torch.full((2, 1), inputs.tokens.shape[1] - 1)
    embeds = inputs.embeds

    def inside(mask):
        with lens.logits_only(rows, hidden=mask), torch.no_grad():
            return lens.model(inputs)

    return {
        "logits_at hidden": (lambda mask: lens.logits_at(inputs, rows, hidden=mask), image),
        "logits_only hidden": (inside, image),
        "logits_at attention_mask": (lambda mask: lens.logits_at(embeds, rows, attention_mask=mask), real),
        "lens.model": (lambda mask: lens.model(embeds, attention_mask=mask).detach()[real], real),
        "without": (lambda mask: lens.without(inputs, mask).embeds, image),
    }


def of_analyses():
    """The same for what reads a cache or a result, or is geometry."""
    patterns = causal_patterns(2, 2, 3, 8)
    real = torch.ones(2, 8, dtype=torch.bool)
    real[0, :3] = False
    for pattern in patterns:
        pattern[0, :, :3] = 0
        pattern[0, :, :, :3] = 0
        pattern[0] = (pattern[0] / pattern[0].sum(-1, keepdim=True)).nan_to_num()
    cache = cache_of_patterns(patterns, attention_dir="causal")
    maps = {"one": torch.arange(8.0), "other": torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6])}
    tokens = torch.arange(16).view(2, 8)
    boxes = torch.tensor([[0.0, 0, 2, 2], [2, 0, 4, 2]])
    grid = ImageGrid(boxes, torch.zeros(2).long(), torch.zeros(2).bool(), width=4, height=2)
    pixels = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 1]]).bool()
    build = lambda mask: ModalityMap.build(tokens, mask, placeholder_ids={}).labels  # noqa: E731
    given = lambda mask: lensplug.cache_from_attentions(patterns, attention_mask=mask).attention_mask  # noqa: E731
    return {
        "rollout": (lambda mask: analysis.attention_rollout(cache, rows=-1, attention_mask=mask).values, real),
        "attention_from": (lambda mask: analysis.attention_from(cache, attention_mask=mask).values, real),
        "received_attention": (
            lambda mask: analysis.received_attention(cache, layer=0, attention_mask=mask).values, real,
        ),
        "cache_from_attentions": (given, real),
        "agreement": (lambda mask: analysis.agreement(maps, positions=mask).rank_correlation, torch.arange(8) < 5),
        "ModalityMap": (build, real),
        "overlap": (grid.overlap, pixels),
        "Groups.only": (lambda mask: Groups(torch.arange(4), list("abcd")).only(mask).of_position, pixels[0]),
    }  # fmt: skip


def compare(doors, form):
    for name, (door, mask) in doors.items():
        expected, found = door(mask), door(FORMS[form](mask))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, equal_nan=True, msg=name.__add__)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_mask_means_the_same_to_a_lens(case, form):
    compare(doors(*case), form)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_mask_means_the_same_to_analyses(form):
    compare(of_analyses(), form)


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_mask_is_refused(case, what):
    broken, message = REFUSED[what]
    for name, (door, mask) in {**doors(*case), **of_analyses()}.items():
        with pytest.raises(LensplugError, match=message if name != "overlap" else message + "|the region"):
            door(broken(mask))


def test_hiding_does_hide(case):
    """By numbers of the wrong dtype too: against a prompt whose image is another one."""
    lens, inputs = case
    rows = torch.full((2, 1), inputs.tokens.shape[1] - 1)
    image = inputs.modality.mask("image")
    other = lensplug.inputs.edited_inputs.in_place(
        inputs, torch.where(image[..., None], inputs.embeds.roll(1, 0), inputs.embeds)
    )
    for mask in (image, image.long(), image.float().numpy()):
        same = [lens.logits_at(each, rows, hidden=mask) for each in (inputs, other)]
        torch.testing.assert_close(*same, atol=1e-5, rtol=0)
    seen = [lens.logits_at(each, rows) for each in (inputs, other)]
    assert float((seen[0] - seen[1]).abs().max()) > 0.1


def test_what_to_give_in_place_of_an_additive_mask_is_said():
    with pytest.raises(LensplugError, match="pass hidden == 0"):
        as_mask(torch.tensor([0.0, -torch.inf]), (2,), "hidden")
    mask = torch.zeros(2, 4).masked_fill(torch.tensor([[1, 0, 0, 0], [1, 1, 0, 1]]).bool(), 255).to(torch.uint8)
    assert torch.equal(as_mask(mask == 255, (2, None), "x"), mask > 0)


def test_an_encoded_mask_of_any_dtype(case):
    lens, inputs = case
    given = dict(inputs.model_inputs)
    for form in ("bool", "float"):
        again = lens.encode({**given, "attention_mask": FORMS[form](given["attention_mask"].bool())})
        assert torch.equal(again.attention_mask, inputs.attention_mask)
        torch.testing.assert_close(again.embeds, inputs.embeds, atol=1e-5, rtol=0)
    with pytest.raises(LensplugError, match="attention_mask holds 2"):
        lens.encode({**given, "attention_mask": given["attention_mask"] * 2})
