"""LaterPositions: what is computed of a pass is as in the whole pass, and earlier positions are not computed again."""

from __future__ import annotations

import pytest
import torch
from support.beside import FAMILIES, wrapped
from support.built import ENGINES
from support.models import text_model, text_tokens
from torch.nn import functional as F

import lensplug
from lensplug.interventions import Knockout

LENGTH = 24
MASKS = {"none": None, "left": slice(0, 5)}
ROWS = torch.tensor([[23, 19], [22, 23]])


@pytest.fixture(params=ENGINES, scope="module")
def engine(request):
    return request.param


@pytest.fixture(params=["llama", "qwen2", "qwen3", "mistral-window"], scope="module")
def lens(engine, request):
    return lensplug.wrap(text_model(request.param), engine=engine, check=False)


def prompt(lens, padding):
    tokens, mask = text_tokens(LENGTH, 2), torch.ones(2, LENGTH, dtype=torch.long)
    if padding is not None:
        mask[0, padding] = 0
    return lens.encode({"input_ids": tokens, "attention_mask": mask})


def edited(position):
    def edit(value, hook):
        value = value.clone()
        value[:, position] *= 3
        return value

    return edit


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("first", [6, 15, 22])
def test_edits_behind_a_position(lens, padding, first):
    inputs = prompt(lens, MASKS[padding])
    differs = []
    with lens.edited_runs(inputs, ROWS) as runs:
        for layer in range(lens.model.cfg.n_layers):
            for name in ("hook_resid_pre", "hook_attn_out", "hook_resid_post", "attn.hook_v"):
                hook = f"blocks.{layer}.{name}", edited(first)
                with torch.no_grad():
                    whole = lens.run_with_hooks(inputs, fwd_hooks=[hook])
                expected = whole[torch.arange(2)[:, None], ROWS]
                for copy in runs.logits(3, [hook], from_layer=layer, from_position=first):
                    torch.testing.assert_close(copy, expected, atol=2e-5, rtol=1e-5)
                differs.append(float((expected - runs.unedited).abs().max()))
    assert max(differs) > 0.01, "this test can fail"


@pytest.mark.parametrize("padding", MASKS)
def test_knockouts(lens, padding):
    """Of one query and of several, which behind the cut are counted from its first position."""
    inputs = prompt(lens, MASKS[padding])
    for to in ([20, 21, 22, 23], [-1]):
        for layer in range(lens.model.cfg.n_layers):
            edit = Knockout(from_=[7, 8, 9], to=to, layers=range(layer, lens.model.cfg.n_layers))
            with lens.intervene(edit):
                expected = lens.logits_at(inputs, ROWS)
            with lens.edited_runs(inputs, ROWS) as runs, lens.intervene(edit):
                found = runs.logits(1, from_layer=layer, from_position=20 if len(to) > 1 else 19)[0]
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_cores_that_are_given_more_than_embeddings(family):
    """Positions of three parts; and images that see themselves whole, of which earlier positions see an edit."""
    lens = wrapped(family)
    inputs = lens.encode(FAMILIES[family][1](20, 13))
    rows = torch.full((2, 1), inputs.shape[1] - 1)
    image = int(inputs.modality.mask("image")[0].nonzero()[1, 0])
    for first in (image, inputs.shape[1] - 3):
        hook = "blocks.1.hook_resid_pre", edited(first)
        with torch.no_grad():
            expected = lens.run_with_hooks(inputs, fwd_hooks=[hook])[:, -1:]
        with lens.edited_runs(inputs, rows) as runs:
            found = runs.logits(2, [hook], from_layer=1, from_position=first)
        for copy in found:
            torch.testing.assert_close(copy, expected, atol=2e-5, rtol=1e-5)


def test_earlier_positions_are_not_computed(lens, monkeypatch):
    inputs, sizes = prompt(lens, None), []
    linear = F.linear

    def noted(x, *weights):
        sizes.append(tuple(x.shape[:2]))
        return linear(x, *weights)

    monkeypatch.setattr(F, "linear", noted)
    of_blocks = []
    with lens.edited_runs(inputs, ROWS) as runs:
        for first in (16, 17):
            sizes.clear()
            runs.logits(3, [("blocks.1.hook_resid_pre", edited(first))], from_layer=1, from_position=first)
            of_blocks.append({size for size in sizes if len(size) == 2})
            assert (6, LENGTH) not in of_blocks[-1], "of the copies no block computes all positions"
    assert {(6, 8), (6, 2), (2, 16)} <= of_blocks[0], "later ones, rows that are read, earlier ones once for all copies"
    assert (2, LENGTH) in of_blocks[0] - of_blocks[1], "keys and values behind the edited block are made once"
