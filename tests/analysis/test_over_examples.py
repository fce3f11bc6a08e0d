"""Numbers of each example in rows: rows that differ in one label alone are averaged."""

import pytest
import torch

from lensplug import LensplugError
from lensplug.analysis.over_examples import OverExamples, grid


def test_a_label_is_averaged_out():
    nan = torch.nan
    values = torch.tensor([[1.0, 2.0, 3.0, nan, 5.0, 6.0, nan, nan]])
    numbers = OverExamples(grid(layer=range(2), head=range(2), side=("a", "b")), {"x": values})
    averaged = numbers.averaged("head")
    assert averaged.labels == {"layer": [0, 0, 1, 1], "side": ["a", "b", "a", "b"]}
    assert averaged.values["x"].tolist() == [[2.0, 2.0, 5.0, 6.0]]
    assert OverExamples({"head": [0, 1]}, {"x": values[:, :2]}).averaged("head").values["x"].tolist() == [[1.5]]
    assert numbers.averaged(None) is numbers
    nothing = numbers.averaged("side").averaged("head").values["x"]
    assert nothing.tolist() == [[(1.5 + 3.0) / 2, 5.5]]
    weights = {"head": [3.0, 3.0, 1.0, 1.0, 3.0, 3.0, 1.0, 1.0], "side": [1.0, 0.0] * 4}
    weighted = OverExamples(numbers.labels, numbers.values, weights).averaged("head")
    assert weighted.values["x"].tolist() == [[1.5, 2.0, 5.0, 6.0]], "3 to 1, and of what is there"
    assert weighted.weights == {"side": [1.0, 0.0, 1.0, 0.0]}
    assert weighted.averaged("side").values["x"].tolist() == [[1.5, 5.0]]
    with pytest.raises(LensplugError, match="no label 'query' to average over, but layer, head, side"):
        numbers.averaged("query")
