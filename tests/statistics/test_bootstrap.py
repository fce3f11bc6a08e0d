import hashlib
import re
import tracemalloc
from functools import partial

import numpy as np
import pytest
from scipy import stats

from lensplug import LensplugError
from lensplug.statistics import Bootstrap, Interval
from lensplug.statistics.poisson_weights import poisson_weights

GOLDEN = [2, 0, 3, 1, 1, 0, 1, 1, 1, 0, 0, 1]
"""How often 'rose' is drawn in the first replicates of seed 0."""
CLOSE = partial(np.testing.assert_allclose, rtol=1e-12)


def study(seed=0, n=90, rows=6):
    """Examples of two groups, about 30 pictures, each in both; rows 2 and 3 lack values together, row 4 elsewhere."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 30, n)
    values = rng.normal(size=(n, rows)) + rng.normal(size=30)[pictures, None]
    values[rng.random(n) < 0.4, 2:4] = np.nan
    values[rng.random(n) < 0.4, 4] = np.nan
    values[:, 5] = np.nan
    return values, list(np.where(rng.random(n) < 0.5, "a", "b")), [f"picture {number}" for number in pictures]


def added(bootstrap, values, groups, clusters, order):
    bootstrap.add(values[order], [groups[i] for i in order], [clusters[i] for i in order])


def test_replicates_are_ratios_of_weighted_sums():
    values, groups, clusters = study()
    bootstrap = Bootstrap(replicates=40, seed=5)
    bootstrap.add(values, groups, clusters)
    assert bootstrap.groups == ("a", "b")
    for index, group in enumerate(bootstrap.groups):
        of_group = [i for i in range(len(values)) if groups[i] == group]
        expected = np.full((40, 6), np.nan)
        for replicate in range(40):
            for row in range(6):
                drawn: list[float] = []
                for i in of_group:
                    if not np.isnan(values[i, row]):
                        drawn += [values[i, row]] * int(poisson_weights([clusters[i]], 40, 5)[replicate, 0])
                expected[replicate, row] = np.mean(drawn) if drawn else np.nan
        np.testing.assert_allclose(bootstrap.replicate_means(group), expected, rtol=1e-10)
        CLOSE(bootstrap.mean[index, :5], np.nanmean(values[of_group, :5], axis=0))
        limits = np.nanpercentile(expected[:, :5], [5, 95], axis=0)
        np.testing.assert_allclose(bootstrap.interval(confidence=0.9).low[index, :5], limits[0], rtol=1e-10)
        np.testing.assert_allclose(bootstrap.interval(confidence=0.9).high[index, :5], limits[1], rtol=1e-10)
    assert np.isnan(bootstrap.mean[:, 5]).all() and np.isnan(bootstrap.interval().low[:, 5]).all()


@pytest.mark.parametrize("size", [1, 7, 50])
def test_chunks_in_any_order_and_parts_give_the_numbers_of_one_pass(size):
    values, groups, clusters = study(n=700)
    once = Bootstrap(replicates=200)
    once.add(values, groups, clusters)
    order = np.random.default_rng(size).permutation(len(values))
    parts = [Bootstrap(replicates=200), Bootstrap(replicates=200)]
    for number, start in enumerate(range(0, len(order), size)):
        added(parts[number % 2], values, groups, clusters, order[start : start + size])
    parts[0].merge(parts[1])
    for group in once.groups:
        np.testing.assert_allclose(parts[0].replicate_means(group), once.replicate_means(group), rtol=1e-10)
    np.testing.assert_allclose(parts[0].interval().low, once.interval().low, rtol=1e-10)
    CLOSE(parts[0].mean, once.mean)


def test_weights_are_poisson_and_known_in_every_process():
    weights = poisson_weights([f"example {number}" for number in range(300)], 1000, seed=1)
    counts = np.bincount(weights.astype(int).ravel(), minlength=9)
    expected = stats.poisson(1).pmf(np.arange(8)) * weights.size
    observed = np.append(counts[:7], counts[7:].sum())
    expected[7] = weights.size - expected[:7].sum()
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert abs(np.corrcoef(weights[:, :40].T) - np.eye(40)).max() < 0.15  # clusters are drawn independently
    assert abs(np.corrcoef(weights[:40]) - np.eye(40)).max() < 0.3  # and replicates
    uniform = np.frombuffer(hashlib.shake_128(b"0|rose").digest(4 * 12), "<u4").astype(float)
    assert stats.poisson(1).ppf((uniform + 0.5) / 2**32).tolist() == GOLDEN
    assert poisson_weights(["rose"], 12, seed=0)[:, 0].tolist() == GOLDEN
    assert poisson_weights(["rose"], 12, seed=2)[:, 0].tolist() != GOLDEN


def test_weights_of_one_sum_are_multinomial():
    """The share of drawings that fall on the first of three clusters is binomial, whatever the sum is."""
    weights = poisson_weights(["a", "b", "c"], 20_000, seed=0)
    of_three = weights[weights.sum(axis=1) == 3]
    observed = np.bincount(of_three[:, 0].astype(int), minlength=4)
    assert stats.chisquare(observed, stats.binom(3, 1 / 3).pmf(np.arange(4)) * len(of_three)).pvalue > 1e-3


def test_limits_are_those_of_scipy_on_many_examples():
    values = np.random.default_rng(0).exponential(size=(400, 3))
    bootstrap = Bootstrap(replicates=4000)
    bootstrap.add(values, ["all"] * 400, list(map(str, range(400))))
    interval = bootstrap.interval()
    for method in ("percentile", "BCa"):
        expected = stats.bootstrap(
            (values,), np.mean, axis=0, n_resamples=4000, method=method, random_state=np.random.default_rng(1)
        ).confidence_interval
        width = (expected.high - expected.low)[None]
        assert (abs(interval.low - expected.low) < 0.12 * width).all()
        assert (abs(interval.high - expected.high) < 0.12 * width).all()


def test_clusters_are_drawn_whole_as_scipy_draws_their_sums():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 12, 150)
    clusters = np.repeat(np.arange(150), sizes)
    values = rng.normal(size=150)[clusters] + 0.1 * rng.normal(size=len(clusters))
    bootstrap = Bootstrap(replicates=4000)
    bootstrap.add(values[:, None], ["all"] * len(values), [f"picture {number}" for number in clusters])
    interval = bootstrap.interval()
    sums = np.bincount(clusters, values)
    expected = stats.bootstrap(
        (sums, sizes), lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis), paired=True, vectorized=True,
        n_resamples=4000, method="percentile", random_state=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    width = expected.high - expected.low
    assert abs(interval.low[0, 0] - expected.low) < 0.1 * width > abs(interval.high[0, 0] - expected.high)
    alone = Bootstrap(replicates=4000)
    alone.add(values[:, None], ["all"] * len(values), list(map(str, range(len(values)))))
    assert alone.interval().high[0, 0] - alone.interval().low[0, 0] < 0.5 * width  # as if there were more pictures


@pytest.mark.parametrize(("n", "distribution"), [(10, "normal"), (10, "exponential"), (30, "exponential")])
def test_intervals_hold_the_mean_at_least_as_often_as_multinomial_ones(n, distribution):
    rng = np.random.default_rng(n)
    held, held_by_scipy, expected_mean = 0.0, 0.0, float(distribution == "exponential")
    for repetition in range(4):
        values = getattr(rng, distribution)(size=(n, 500))
        bootstrap = Bootstrap(seed=repetition)
        bootstrap.add(values, ["all"] * n, list(map(str, range(n))))
        limits = bootstrap.interval()
        held += float(((limits.low <= expected_mean) & (expected_mean <= limits.high)).mean()) / 4
        theirs = stats.bootstrap(
            (values,), np.mean, axis=0, n_resamples=2000, method="percentile", random_state=rng, batch=100
        ).confidence_interval
        held_by_scipy += float(((theirs.low <= expected_mean) & (expected_mean <= theirs.high)).mean()) / 4
    assert held_by_scipy - 0.005 <= held <= 0.96
    assert held >= (0.84 if distribution == "exponential" else 0.89)


def test_one_cluster_has_no_limits():
    bootstrap = Bootstrap(replicates=50)
    bootstrap.add([[1.0, 1.0], [3.0, 1.0]], ["one picture"] * 2, ["p", "p"])
    bootstrap.add([[1.0, 1.0], [3.0, np.nan]], ["two pictures"] * 2, ["p", "q"])
    bootstrap.add([[5.0, np.nan]], ["one picture"], ["p"])
    assert bootstrap.mean.tolist() == [[3.0, 1.0], [2.0, 1.0]]
    interval = bootstrap.interval()
    assert np.isnan(interval.low[0]).all() and np.isnan(interval.high[0]).all()
    assert (interval.low[1, 0], interval.high[1, 0]) == (1.0, 3.0)
    assert np.isnan(interval.low[1, 1])  # only one of the two has a value in this row
    later = Bootstrap(replicates=50)
    later.add([[4.0, 2.0]], ["one picture"], ["q"])
    bootstrap.merge(later)
    assert np.isfinite(bootstrap.interval().low[0]).all()


def test_equal_values_have_an_interval_of_no_width():
    bootstrap = Bootstrap(replicates=50)
    bootstrap.add([[2.0]] * 5, ["a"] * 5, list("vwxyz"))
    assert bootstrap.interval().low == bootstrap.interval().high == 2.0


def test_difference_of_groups_of_the_same_pictures_is_of_pairs():
    rng = np.random.default_rng(0)
    pictures = [f"picture {number}" for number in range(100)]
    first = rng.normal(size=(100, 1))
    second = first + 0.3 + 0.1 * rng.normal(size=(100, 1))
    bootstrap = Bootstrap()
    bootstrap.add(np.concatenate([first, second]), ["a"] * 100 + ["b"] * 100, pictures * 2)
    paired = bootstrap.difference("b", "a")
    expected = stats.bootstrap(
        (second[:, 0] - first[:, 0],), np.mean, method="percentile", random_state=np.random.default_rng(1)
    ).confidence_interval
    width = expected.high - expected.low
    assert abs(paired.low[0] - expected.low) < 0.15 * width > abs(paired.high[0] - expected.high)


def test_memory_does_not_grow_with_the_examples():
    rng = np.random.default_rng(0)
    bootstrap = Bootstrap(replicates=300)

    def add(first, last):
        for number in range(first, last):
            bootstrap.add(rng.random((50, 40)), ["a"] * 50, [f"{number}/{i}" for i in range(50)])

    add(0, 2)
    tracemalloc.start()
    try:
        add(2, 4)
        before, _ = tracemalloc.get_traced_memory()
        add(4, 60)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 10_000  # the state is 96,000 bytes, 2,800 examples would be 896,000


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda b: b.add([[1.0]], ["a"], ["p", "q"]), "clusters has 2 names for 1 examples: give one for each."),
        (lambda b: b.add([[1.0]], [], ["p"]), "groups has 0 names for 1 examples"),
        (lambda b: b.add([[1.0, 2.0]], ["a"], ["p"]), "values with 2 rows are added to values with 1"),
        (lambda b: b.interval(confidence=95), "confidence is 95, expected a share between 0 and 1, such as 0.95."),
        (lambda b: b.difference("a", "c"), "there is no group 'c', there are 'a'."),
        (lambda b: b.merge(b), "a bootstrap is merged with itself"),
        (
            lambda b: b.merge(Bootstrap(seed=1, replicates=10)),
            "of seed 1 and 10 replicates is merged with one of seed 0",
        ),
        (lambda b: Bootstrap(replicates=1), "replicates is 1, expected at least 2."),
        (lambda b: Bootstrap().difference("a", "b"), "there is no group 'a', there are none."),
    ],
)
def test_what_is_refused_counts_nothing(call, said):
    bootstrap = Bootstrap(replicates=10)
    bootstrap.add([[1.0], [3.0]], ["a", "a"], ["p", "q"])
    with pytest.raises(LensplugError, match=re.escape(said)):
        call(bootstrap)
    assert bootstrap.mean.tolist() == [[2.0]]


def test_nothing_yet():
    bootstrap = Bootstrap()
    assert bootstrap.groups == () and bootstrap.mean.shape == (0, 0)
    assert isinstance(bootstrap.interval(), Interval)
    bootstrap.merge(Bootstrap())


def test_more_replicates_than_memory_holds_are_refused():
    with pytest.raises(LensplugError, match="replicates is 10,000,000, expected at most 100,000"):
        Bootstrap(replicates=10_000_000)
