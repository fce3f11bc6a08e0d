"""Wilson's interval against scipy's, and with groups against numbers by hand and simulated coverage."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("scipy")

from scipy import stats

from lensplug.analysis.probes.accuracy_interval import effective_number, variance, wilson


def alone(count: int) -> torch.Tensor:
    return torch.arange(count)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (7, 10), (10, 10), (499, 500), (1, 2)])
def test_of_independent_examples_it_is_scipy_s(right, count):
    correct = torch.arange(count) < right
    number = effective_number(correct, alone(count))
    assert float(number) == pytest.approx(count)
    low, high = wilson(correct.double().mean(), number)
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert (float(low), float(high)) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_examples_that_say_the_same_count_once():
    correct = torch.tensor([True, True, False, True, False]).repeat_interleave(4)
    groups = alone(5).repeat_interleave(4)
    # 5 groups say what 5 examples would: n' = n (p (1 - p) / (n - 1)) / v with v of 5 groups.
    of_five = variance(correct[::4], alone(5))
    torch.testing.assert_close(variance(correct, groups), of_five)
    assert float(effective_number(correct, groups)) == pytest.approx(20 * (0.24 / 19) / float(of_five))
    assert float(effective_number(torch.ones(20).bool(), groups)) == 5
    assert float(effective_number(correct, torch.zeros(20).long())) == 1


def test_it_holds_the_accuracy_where_groups_agree():
    generator = torch.Generator().manual_seed(0)
    n_groups, each, accuracy = 20, 5, 0.9
    groups = alone(n_groups).repeat_interleave(each)
    of_group = torch.rand(2000, n_groups, generator=generator) < accuracy  # all examples of a group alike
    correct = of_group.repeat_interleave(each, dim=1)
    share = correct.double().mean(dim=1)
    for number, least, most in (
        (effective_number(correct, groups), 0.93, 1.0),
        (torch.full((2000,), 100.0), 0.0, 0.75),
    ):
        low, high = wilson(share, number)
        covered = float(((low <= accuracy) & (accuracy <= high)).double().mean())
        assert least <= covered <= most
