import re
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from lensplug import LensplugError
from lensplug.statistics import adjusted_p_values, group_differences


def two_groups(n_a, n_b, rows=4, seed=0):
    """Row 0 differs; spreads and sizes differ between the groups; row 3 lacks values."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n_a, rows)), 2 * rng.normal(size=(n_b, rows))
    a[:, 0] += 1.5
    a[::4, 3] = np.nan
    b[::3, 3] = np.nan
    return a + 100, b + 100


def test_interval_is_welchs():
    a, b = two_groups(20, 33)
    result = group_differences(a, b, confidence=0.9)
    theirs = stats.ttest_ind(a, b, equal_var=False, nan_policy="omit").confidence_interval(0.9)
    np.testing.assert_allclose(result.low, theirs.low, rtol=1e-9)
    np.testing.assert_allclose(result.high, theirs.high, rtol=1e-9)
    np.testing.assert_allclose(result.difference, np.nanmean(a, axis=0) - np.nanmean(b, axis=0), rtol=1e-11)


def test_few_examples_are_tested_exactly():
    a, b = two_groups(5, 7)
    result = group_differences(a[:, :3], b[:, :3], correction="holm")
    assert result.is_exact and result.permutations == 792

    def welch(x, y, axis):
        return stats.ttest_ind(x, y, axis=axis, equal_var=False).statistic

    theirs = stats.permutation_test((a[:, :3], b[:, :3]), welch, n_resamples=np.inf, axis=0).pvalue
    # SciPy doubles the smaller tail; of a statistic of both signs, this is the share beyond on either side.
    observed, size = np.abs(welch(a[:, :3], b[:, :3], 0)), np.zeros(3)
    pooled = np.concatenate([a, b])[:, :3]
    for chosen in combinations(range(12), 5):
        rest = [index for index in range(12) if index not in chosen]
        size += np.abs(welch(pooled[list(chosen)], pooled[rest], 0)) >= observed * (1 - 1e-9)
    np.testing.assert_allclose(result.p_value, size / 792, rtol=1e-12)
    np.testing.assert_allclose(result.p_value, theirs, atol=0.1)
    np.testing.assert_array_equal(result.adjusted_p_value, adjusted_p_values(result.p_value, "holm"))


def test_largest_statistic_over_rows_and_clusters_by_a_plain_loop():
    rng = np.random.default_rng(0)
    a_clusters, b_clusters = [list(f"{side}{i}" for i in rng.integers(0, 4, 12)) for side in "ab"]
    a, b = rng.normal(size=(12, 3)) + [0.8, 0, 0], rng.normal(size=(12, 3)) * [1, 5, 0.1]
    a[2:4, 1] = np.nan
    result = group_differences(a, b, a_clusters=a_clusters, b_clusters=b_clusters)
    values, clusters = np.concatenate([a, b]), [*a_clusters, *b_clusters]
    all_clusters = sorted(set(clusters))

    def side(row, chosen):
        parts = [
            np.array([v for v, c in zip(values[:, row], clusters, strict=True) if c == one and not np.isnan(v)])
            for one in chosen
        ]
        parts = [part for part in parts if len(part)]
        n, k = sum(map(len, parts)), len(parts)
        mean = sum(part.sum() for part in parts) / n
        return mean, sum((part - mean).sum() ** 2 for part in parts) / n**2 * k / (k - 1)

    def t_values(chosen):
        found = []
        for row in range(3):
            (mean, variance), (other, other_variance) = (
                side(row, chosen),
                side(row, [c for c in all_clusters if c not in chosen]),
            )
            found.append(abs(mean - other) / (variance + other_variance) ** 0.5)
        return np.array(found)

    of_a = sorted(set(a_clusters))
    observed = t_values(of_a) * (1 - 1e-9)
    shuffled = np.array([t_values(chosen) for chosen in combinations(all_clusters, len(of_a))])
    assert result.permutations == len(shuffled)
    np.testing.assert_allclose(result.p_value, (shuffled >= observed).mean(axis=0), rtol=1e-12)
    largest = (shuffled.max(axis=1)[:, None] >= observed).mean(axis=0)
    np.testing.assert_allclose(result.adjusted_p_value, largest, rtol=1e-12)


def test_random_shuffles_approach_welchs_test():
    a, b = two_groups(150, 150)
    result = group_differences(a, b, permutations=5000, seed=1)
    assert not result.is_exact
    theirs = stats.ttest_ind(a, b, equal_var=False, nan_policy="omit").pvalue
    np.testing.assert_allclose(result.p_value, theirs, atol=0.025)
    again = group_differences(a, b, permutations=5000, seed=1)
    np.testing.assert_array_equal(result.p_value, again.p_value)
    assert (group_differences(a, b, permutations=5000, seed=2).p_value != result.p_value).any()


def test_names_make_the_order_of_examples_indifferent():
    a, b = two_groups(30, 30)
    a_names, b_names = [f"a{i:02}" for i in range(30)], [f"b{i:02}" for i in range(30)]
    order = np.random.default_rng(0).permutation(30)
    expected = group_differences(a, b, a_clusters=a_names, b_clusters=b_names, permutations=300)
    got = group_differences(a[order], b, a_clusters=[a_names[i] for i in order], b_clusters=b_names, permutations=300)
    np.testing.assert_allclose(got.p_value, expected.p_value, rtol=1e-12)


def test_too_little_to_tell():
    a = [[1.0, np.nan, 1.0, 1.0], [2.0, np.nan, np.nan, 1.0]]
    b = [[5.0, 1.0, 2.0, 1.0], [6.0, 1.0, 3.0, 1.0]]
    result = group_differences(a, b)
    np.testing.assert_array_equal(result.difference, [-4.0, np.nan, -1.5, 0.0])
    np.testing.assert_array_equal(np.isnan(result.p_value), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(result.high), [False, True, True, False])
    np.testing.assert_allclose(result.p_value[[0, 3]], [2 / 6, 1.0])
    assert result.low[3] == result.high[3] == 0.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"a_clusters": ["p", "q"], "b_clusters": ["q", "r"]},
            "1 clusters are on both sides ('q'): their examples are",
        ),
        ({"a_clusters": ["p"]}, "a_clusters has 1 names for 2 examples"),
        ({"b": [[1.0, 2.0]] * 2}, "values with 2 rows are added to values with 1"),
        ({"confidence": 0.0}, "confidence is 0, expected a share"),
        ({"permutations": 0}, "permutations is 0, expected at least 1."),
    ],
)
def test_what_is_refused(options, said):
    arguments = {"a": [[1.0]] * 2, "b": [[2.0]] * 2} | options
    with pytest.raises(LensplugError, match=re.escape(said)):
        group_differences(arguments.pop("a"), arguments.pop("b"), **arguments)


def test_more_permutations_than_tell_anything_are_refused():
    with pytest.raises(LensplugError, match="permutations is 10,000,000, expected at most 1,000,000: a p-value"):
        group_differences(np.zeros((2, 1)), np.zeros((2, 1)), permutations=10_000_000)
