import re

import numpy as np
import pytest
import torch

from lensplug import LensplugError
from lensplug.statistics import Moments

GROUPS = np.array(["rose", "tulip", "oak"])


def example_values(seed=0, n=200, rows=5):
    """Values with a large offset, and NaN: in row 0 none is missing, in row 4 all are."""
    rng = np.random.default_rng(seed)
    values = 1e4 + rng.normal(size=(n, rows)) * [1, 1e-3, 10, 1, 1]
    values[rng.random(values.shape) < [0, 0.3, 0.5, 0.9, 1]] = np.nan
    return values, GROUPS[rng.integers(0, 3, n)]


def streamed(values, groups, order, size=17):
    moments = Moments()
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        moments.add(values[chunk], list(groups[chunk]))
    return moments


def refers_to_numpy(moments, values, groups):
    assert moments.groups == tuple(sorted(set(groups)))
    with np.errstate(invalid="ignore", divide="ignore"), pytest.warns(RuntimeWarning):
        by_group = [values[groups == group] for group in moments.groups]
        mean = np.array([np.nanmean(of_group, axis=0) for of_group in by_group])
        variance = np.array([np.nanvar(of_group, axis=0, ddof=1) for of_group in by_group])
    count = np.array([(~np.isnan(of_group)).sum(axis=0) for of_group in by_group])
    np.testing.assert_array_equal(moments.count, count)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(moments.variance, variance, rtol=1e-9)
    np.testing.assert_allclose(moments.standard_error, np.sqrt(variance / count), rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_chunks_in_any_order_give_the_numbers_of_numpy(seed):
    values, groups = example_values(seed)
    order = np.random.default_rng(seed).permutation(len(values))
    refers_to_numpy(streamed(values, groups, order), values, groups)


def test_ordinary_values_agree_to_twelve_digits():
    values = np.random.default_rng(0).random((3000, 4))
    moments = streamed(values, np.full(3000, "all"), np.arange(3000))
    np.testing.assert_allclose(moments.mean[0], values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance[0], values.var(axis=0, ddof=1), rtol=1e-12)


def test_parts_of_several_processes_merge():
    values, groups = example_values()
    late = np.argsort(groups, kind="stable")  # oak alone first: the other groups come late
    parts = [streamed(values, groups, late[start::3]) for start in range(3)]
    merged = Moments()
    for part in (parts[2], parts[0], parts[1]):
        merged.merge(part)
    refers_to_numpy(merged, values, groups)


def test_by_hand():
    moments = Moments()
    moments.add([[1.0, np.nan], [2.0, 5.0]], ["a", "a"])
    moments.add(torch.tensor([[6.0, np.nan]]), ["a"])
    assert moments.count.tolist() == [[3, 1]]
    assert moments.mean.tolist() == [[3.0, 5.0]]
    assert moments.variance[0, 0] == 7.0 and np.isnan(moments.variance[0, 1])
    assert moments.standard_error[0, 0] == (7 / 3) ** 0.5


def test_nothing_yet():
    moments = Moments()
    assert moments.groups == () and moments.mean.shape == (0, 0)
    moments.merge(Moments())
    moments.add(np.empty((0, 3)), [])
    assert moments.mean.shape == (0, 3)


@pytest.mark.parametrize(
    ("values", "groups", "said"),
    [
        ([[1.0, 2.0]], ["a", "b"], "groups has 2 names for 1 examples: give one for each."),
        ([1.0, 2.0], ["a", "b"], "values has the shape [2], expected numbers [example row]"),
        ([["x"]], ["a"], "values is the list [['x']], expected numbers [example row]"),
        ([[1.0], [2.0, 3.0]], ["a", "a"], "expected numbers [example row]"),
        ([[1.0, -np.inf]], ["a"], "values holds infinity (1 of 2 numbers, the first in example 0, row 1)"),
        ([[1.0, 2.0, 3.0]], ["a"], "values with 3 rows are added to values with 2"),
        ([[1.0, 2.0]], "a", "groups is 'a', expected Sequence[str]."),
    ],
)
def test_what_is_refused_counts_nothing(values, groups, said):
    moments = Moments()
    moments.add([[1.0, 2.0]], ["a"])
    with pytest.raises(LensplugError, match=re.escape(said)):
        moments.add(values, groups)
    assert moments.count.tolist() == [[1, 1]]


def test_moments_are_not_merged_with_themselves():
    moments = Moments()
    moments.add([[1.0]], ["a"])
    with pytest.raises(LensplugError, match="count twice"):
        moments.merge(moments)
