"""Scopes kept under a name: each begins anew when it is entered again, and none is entered within itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from support.models import snapshot, text_model, text_tokens

import lensplug
import lensplug.lens
from lensplug import LensplugError, patches
from lensplug.interventions import Scale

LENGTH = 8
ROWS = torch.tensor([[LENGTH - 1]])


@pytest.fixture(scope="module")
def lens():
    return lensplug.wrap(text_model("llama"), None, check=False)


@pytest.fixture(scope="module")
def inputs(lens):
    return lens.encode({"input_ids": text_tokens(LENGTH)})


def halved(value, hook):
    return value / 2


SCOPES = {
    "hooks": lambda lens, inputs: lens.hooks([(("attn_out", 1), halved)]),
    "intervene": lambda lens, inputs: lens.intervene(Scale(heads=[(1, 0)], factor=3.0)),
    "logits_only": lambda lens, inputs: lens.logits_only(ROWS),
    "edited_runs": lambda lens, inputs: lens.edited_runs(inputs, ROWS),
    "placeholders_as_words": lambda lens, inputs: lens.placeholders_as_words(),
    "model.hooks": lambda lens, inputs: lens.model.hooks(fwd_hooks=[("blocks.1.hook_attn_out", halved)]),
}
"""Those of a lens; `adapter` is in `test_adapters`."""


def logits_of(lens, inputs):
    with torch.no_grad():
        return lens.model(inputs)[:, -1]


def test_every_scope_of_a_lens_is_here():
    found = set()
    for path in Path(str(lensplug.lens.__file__)).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "contextmanager" not in text, f"{path.name}: scopes of contextlib can be entered once; use scope"
        found |= set(re.findall(r"@scope\n    def (\w+)", text))
    assert found == {*SCOPES, "adapter"} - {"model.hooks"}


@pytest.mark.parametrize("name", SCOPES)
def test_a_scope_is_entered_again(lens, inputs, name):
    made, plain, before = SCOPES[name](lens, inputs), logits_of(lens, inputs), snapshot(lens.model)
    found = []
    for _ in range(3):
        with made:
            found.append(logits_of(lens, inputs))
        assert snapshot(lens.model) == before
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    with pytest.raises(ZeroDivisionError), made:
        raise ZeroDivisionError
    assert torch.equal(logits_of(lens, inputs), plain)
    if name in ("hooks", "intervene", "model.hooks"):
        assert float((found[0] - plain).abs().max()) > 1e-3, "this test can fail"


@pytest.mark.parametrize("name", SCOPES)
def test_a_scope_within_itself_is_refused(lens, inputs, name):
    made, before = SCOPES[name](lens, inputs), snapshot(lens.model)
    with made:
        inside = logits_of(lens, inputs)
        with pytest.raises(LensplugError, match="entered already: leave it first, or make a new one"), made:
            pass
        assert torch.equal(logits_of(lens, inputs), inside), "the outer one is still there"
    assert snapshot(lens.model) == before


def test_a_patch_entered_within_itself_stays_until_the_outer_block_ends(lens, inputs):
    patch, plain = patches.LogitRows(lens.model, ROWS), lens.model(inputs).shape[1]
    for _ in range(2):
        with patch:
            with patch:
                assert lens.model(inputs).shape[1] == 1
            assert patch.applied and lens.model(inputs).shape[1] == 1
        assert not patch.applied and lens.model(inputs).shape[1] == plain
    patch.apply()
    with patch:
        pass
    assert patch.applied, "as it was before the block"
    patch.remove()
