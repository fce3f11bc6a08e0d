import re
from itertools import product
from typing import Literal

import numpy as np
import pytest
from scipy import stats

from lensplug import LensplugError
from lensplug.statistics import Bootstrap, adjusted_p_values, paired_differences


def names(n):
    return [f"picture {number:04}" for number in range(n)]


def two_prompts(n, rows=4, seed=0):
    """Row 0 differs by a third of a standard deviation, the others do not; row 3 lacks values."""
    rng = np.random.default_rng(seed)
    picture = rng.normal(size=(n, rows)) * 5
    a, b = (picture + rng.normal(size=(n, rows)) for _ in range(2))
    a[:, 0] += 0.5
    a[::4, 3] = np.nan
    return a, b


def test_few_pairs_are_tested_exactly():
    a, b = two_prompts(8)
    result = paired_differences(a, b, a_pairs=names(8), b_pairs=names(8), correction="none")
    assert result.is_exact and result.permutations == 2**8
    for row in range(4):
        d = (a - b)[:, row]
        d = d[~np.isnan(d)]
        theirs = stats.permutation_test(
            (d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        )
        np.testing.assert_allclose(result.p_value[row], theirs.pvalue, rtol=1e-12)
        np.testing.assert_allclose(result.difference[row], d.mean(), rtol=1e-12)
    assert result.count.tolist() == result.clusters.tolist() == [8, 8, 8, 6]


def test_flips_of_clusters_and_the_largest_over_rows_by_a_plain_loop():
    rng = np.random.default_rng(1)
    clusters = [f"c{number}" for number in rng.integers(0, 7, 30)]
    differences = rng.normal(size=(30, 5)) * [1, 10, 0.1, 1, 1] + [0.4, 0, 0.02, 0, 0]
    differences[5:9, 4] = np.nan
    result = paired_differences(
        differences, np.zeros((30, 5)), a_pairs=names(30), b_pairs=names(30), a_clusters=clusters
    )

    def t_values(signs):
        found = []
        for row in range(5):
            of_cluster: dict[str, list[float]] = {}
            for value, cluster in zip(differences[:, row], clusters, strict=True):
                if not np.isnan(value):
                    of_cluster.setdefault(cluster, []).append(value * signs[cluster])
            n, k = sum(map(len, of_cluster.values())), len(of_cluster)
            mean = sum(map(sum, of_cluster.values())) / n
            variance = sum(sum(v - mean for v in d) ** 2 for d in of_cluster.values()) / n**2 * k / (k - 1)
            found.append(mean / variance**0.5)
        return np.abs(found)

    all_clusters = sorted(set(clusters))
    observed = t_values(dict.fromkeys(all_clusters, 1))
    flips = np.array([t_values(dict(zip(all_clusters, signs, strict=True))) for signs in product((1, -1), repeat=7)])
    slack = observed * (1 - 1e-9)
    np.testing.assert_allclose(result.p_value, (flips >= slack).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(result.adjusted_p_value, (flips.max(axis=1)[:, None] >= slack).mean(axis=0), rtol=1e-12)
    assert (result.adjusted_p_value >= result.p_value).all()
    assert result.clusters.tolist() == [7] * 5


def test_random_flips_approach_the_t_test_and_are_never_zero():
    a, b = two_prompts(200)
    result = paired_differences(a, b, a_pairs=names(200), b_pairs=names(200), permutations=20_000, seed=3)
    assert not result.is_exact and result.permutations == 20_000
    theirs = stats.ttest_rel(a, b, nan_policy="omit").pvalue
    np.testing.assert_allclose(result.p_value, theirs, atol=0.015)
    a[:, 1] += 5
    certain = paired_differences(a, b, a_pairs=names(200), b_pairs=names(200), permutations=999)
    assert certain.p_value[1] == certain.adjusted_p_value[1] == 1 / 1000


def test_interval_is_the_bootstrap_of_the_differences():
    a, b = two_prompts(60)
    result = paired_differences(a, b, a_pairs=names(60), b_pairs=names(60), confidence=0.9, seed=2)
    bootstrap = Bootstrap(seed=2)
    bootstrap.add(a - b, ["d"] * 60, names(60))
    np.testing.assert_array_equal(result.low, bootstrap.interval(confidence=0.9).low[0])
    theirs = stats.bootstrap(
        ((a - b)[:, :3],),
        np.mean,
        axis=0,
        confidence_level=0.9,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    np.testing.assert_allclose(result.high[:3], theirs.high, atol=0.05)


def test_the_order_of_examples_changes_nothing_and_others_are_left_out():
    a, b = two_prompts(40)
    a_order, b_order = np.random.default_rng(1).permutation(40), np.random.default_rng(2).permutation(40)
    expected = paired_differences(a[:30], b[:30], a_pairs=names(30), b_pairs=names(30), permutations=500)
    a_pairs, b_pairs = names(40), [*names(30), *(f"of b alone {number}" for number in range(10))]
    got = paired_differences(
        a[a_order], b[b_order],
        a_pairs=[a_pairs[i] for i in a_order], b_pairs=[b_pairs[i] for i in b_order], permutations=500,
    )  # fmt: skip
    for field in ("difference", "low", "high", "p_value", "adjusted_p_value"):
        np.testing.assert_allclose(getattr(got, field), getattr(expected, field), rtol=1e-12)


def test_several_of_a_name_count_with_their_mean():
    result = paired_differences(
        [[1.0], [3.0], [5.0], [np.nan]], [[1.0], [1.0]], a_pairs=["p", "p", "q", "q"], b_pairs=["p", "q"]
    )
    assert result.difference.tolist() == [2.5]  # (2 - 1 + 5 - 1) / 2
    assert result.count.tolist() == [2]


def test_false_alarms_over_rows_stay_rare():
    """200 studies of 8 pairs and 30 rows alike: a head is found in about 5 % with the largest statistic."""
    rng = np.random.default_rng(0)
    found: dict[Literal["none", "max_statistic"], int] = {"none": 0, "max_statistic": 0}
    for _ in range(200):
        shared = rng.normal(size=(8, 1))
        d = 0.5 * shared + rng.normal(size=(8, 30))
        for correction in found:
            result = paired_differences(
                d, 0 * d, a_pairs=names(8), b_pairs=names(8), correction=correction, replicates=2
            )
            found[correction] += bool((result.adjusted_p_value <= 0.05).any())
    assert found["max_statistic"] <= stats.binom(200, 0.05).ppf(0.9999)
    assert found["max_statistic"] >= stats.binom(200, 0.02).ppf(0.01)  # and it does not find nothing at all
    assert found["none"] > 100


@pytest.mark.parametrize("correction", ["holm", "benjamini_hochberg", "benjamini_yekutieli", "none"])
def test_other_corrections_are_of_the_p_values(correction):
    a, b = two_prompts(9)
    result = paired_differences(a, b, a_pairs=names(9), b_pairs=names(9), correction=correction)
    np.testing.assert_array_equal(result.adjusted_p_value, adjusted_p_values(result.p_value, correction))
    assert result.correction == correction


def test_too_little_to_tell():
    d = np.array([[1.0, 1.0, np.nan, 0.0, 2.0], [2.0, np.nan, np.nan, 0.0, 2.0], [3.0, np.nan, np.nan, 0.0, 2.0]])
    result = paired_differences(d, 0 * d, a_pairs=names(3), b_pairs=names(3))
    assert result.count.tolist() == [3, 1, 0, 3, 3]
    np.testing.assert_array_equal(result.difference, [2.0, 1.0, np.nan, 0.0, 2.0])
    np.testing.assert_array_equal(np.isnan(result.p_value), [False, True, True, False, False])
    np.testing.assert_array_equal(np.isnan(result.low), [False, True, True, False, False])
    np.testing.assert_allclose(result.p_value[[0, 3, 4]], [2 / 8, 1, 2 / 8])
    one = paired_differences([[1.0]], [[0.0]], a_pairs=["p"], b_pairs=["p"])
    assert one.difference == 1.0 and np.isnan([one.low[0], one.p_value[0], one.adjusted_p_value[0]]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"b_pairs": ["x", "y", "z"]},
            "no pair is on both sides: a has 'p', 'q', ..., b has 'x', 'y', ...; a pair has",
        ),
        ({"b_pairs": ["p"]}, "b_pairs has 1 names for 3 examples"),
        ({"a_clusters": ["c", "c"]}, "a_clusters has 2 names for 3 examples"),
        ({"a_pairs": ["p", "p", "r"], "a_clusters": list("cde")}, "pair 'p' is in the clusters 'c' and 'd'"),
        ({"b": [[1.0, 2.0]] * 3}, "values with 2 rows are added to values with 1"),
        ({"a": [1.0, 2.0, 3.0]}, "a has the shape [3], expected numbers [example row]"),
        ({"confidence": 1.0}, "confidence is 1, expected a share between 0 and 1"),
        ({"permutations": 0}, "permutations is 0, expected at least 1."),
        ({"correction": "bonferroni"}, "correction is 'bonferroni', expected 'max_statistic', 'holm',"),
    ],
)
def test_what_is_refused(options, said):
    arguments = {"a": [[1.0]] * 3, "b": [[2.0]] * 3, "a_pairs": list("pqr"), "b_pairs": list("pqr")} | options
    with pytest.raises(LensplugError, match=re.escape(said)):
        paired_differences(arguments.pop("a"), arguments.pop("b"), **arguments)


def test_more_permutations_than_tell_anything_are_refused():
    with pytest.raises(LensplugError, match="permutations is 10,000,000, expected at most 1,000,000: a p-value"):
        paired_differences(np.zeros((1, 1)), np.zeros((1, 1)), a_pairs=["a"], b_pairs=["a"], permutations=10_000_000)
