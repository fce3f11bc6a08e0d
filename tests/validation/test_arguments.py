"""What is given to a public function is held against its annotations: converted, or refused in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug import LensplugError
from lensplug.positions.indices import Positions
from lensplug.validation.arguments import admitted, checked

ROW = Float[Tensor, " pos"]


@pytest.mark.parametrize(
    ("hint", "given", "expected"),
    [
        (int, np.int64(2), 2), (int, torch.tensor(3), 3), (float, 1, 1.0), (float, np.float32(0.5), 0.5),
        (bool, np.True_, True), (int | str, "mean", "mean"), (float | str, 1, 1.0), (int | None, None, None),
        (tuple[int, int], [0, 1], (0, 1)), (Positions, -1, -1), (Positions, [1, 2], [1, 2]),
        (ROW, np.array([0.5, 1.0]), torch.tensor([0.5, 1.0])), (ROW, [1, 2], torch.tensor([1.0, 2.0])),
        (ROW, torch.tensor([1, 2]), torch.tensor([1.0, 2.0])),
        (Int[Tensor, "a b"], [[1], [2]], torch.tensor([[1], [2]])),
        (Positions, np.array([1]), torch.tensor([1])),
    ],
    ids=lambda value: repr(value)[:20] if isinstance(value, int | float | str) else type(value).__name__,
)  # fmt: skip
def test_what_means_the_same_is_converted(hint, given, expected):
    found = admitted(given, hint, "x")
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected) and found.dtype == expected.dtype
    else:
        assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("hint", "given", "words"),
    [
        (int, True, "x is True, expected a whole number"), (int, 1.0, "x is 1.0, expected a whole number"),
        (int, torch.tensor([1]), r"x is a tensor \[1\] of int64"), (float, float("nan"), "x is nan, expected a number"),
        (float, "0.5", "x is '0.5', expected a number"), (bool, 1, "x is 1, expected True or False"),
        (str, b"x", "x is a bytes, expected a text"), (str | None, 3, "x is 3, expected a text or None"),
        (Positions, [1.5], r"x is the list \[1.5\]"), (tuple[int, int], (1, 2, 3), r"expected tuple\[int, int\]"),
        (ROW, [[1.0], [2.0, 3.0]], r"expected Float\[Tensor, 'pos'\]"), (ROW, torch.zeros(2, 2), r"a tensor \[2, 2\]"),
        (ROW, torch.tensor([True]), "of bool"), (ROW, int, "x is the class int"), (ROW, object(), "x is an object"),
        (str, "y" * 100, None),
    ],
    ids=lambda value: repr(value)[:20] if isinstance(value, int | float | str) else type(value).__name__,
)  # fmt: skip
def test_what_does_not_is_refused_in_words(hint, given, words):
    if words is None:
        assert admitted(given, hint, "x") == given
        return
    with pytest.raises(LensplugError, match=words):
        admitted(given, hint, "x")


@checked
def example(cache: Any, layer: int, *, share: float = 0.5, names: str | None = None) -> tuple[Any, ...]:
    """A function."""
    return cache, layer, share, names


def test_a_checked_function():
    assert example("anything", np.int32(2), share=1) == ("anything", 2, 1.0, None)
    assert example.__name__ == "example" and example.__doc__ == "A function."
    for given, words in (
        ((("c",), {}), "example: missing a required argument: 'layer'. Its arguments are cache, layer, share, names"),
        ((("c", 1), {"shares": 1}), "got an unexpected keyword argument 'shares'"),
        ((("c", 1), {"share": "x"}), "share is 'x', expected a number"),
        ((("c", "1"), {}), "layer is '1', expected a whole number"),
    ):
        with pytest.raises(LensplugError, match=words):
            example(*given[0], **given[1])
