"""Rows of the patches that make chosen positions: one rule, and a sentence in place of an index error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.built import ENGINES, attention_rows, built
from support.models import text_model, text_tokens

from lensplug import LensplugError
from lensplug.patches import LogitRows

LENGTH = 7


@pytest.fixture(scope="module", params=ENGINES)
def patched(request):
    model = built(request.param, text_model("llama"))
    return [(model, attention_rows(request.param)), (model, LogitRows)]


@pytest.mark.parametrize(
    "rows", [[[6, 2]], ((6, 2),), np.array([[6, 2]]), torch.tensor([[6, 2]], dtype=torch.int32)], ids=type
)
def test_rows_of_any_kind_are_those_of_a_tensor(patched, rows):
    tokens, expected = text_tokens(LENGTH), torch.tensor([[6, 2]])
    for model, patch in patched:
        with patch(model, expected):
            logits = model(tokens)
        with patch(model, rows):
            assert torch.equal(model(tokens), logits)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (6, "rows are a int, expected whole numbers"),
        (None, "rows are a NoneType"),
        ("6", "rows are a str"),
        ([6], r"rows are int64 of the shape \[1\]"),
        ([[6], [1, 2]], "rows are a list"),
        (torch.tensor([[6.0]]), "rows are float32"),
        (torch.ones(1, LENGTH, dtype=torch.bool), "rows are bool"),
        ([[-1]], "rows hold -1.*count from the left"),
    ],
)
def test_rows_that_are_none_are_refused_before_anything_runs(patched, rows, said):
    for model, patch in patched:
        with pytest.raises(LensplugError, match=said):
            patch(model, rows)


def test_rows_behind_the_last_position_are_refused(patched):
    for model, patch in patched:
        with patch(model, [[2, LENGTH]]), pytest.raises(LensplugError, match=f"rows hold {LENGTH}, .* 0 to 6"):
            model(text_tokens(LENGTH))
