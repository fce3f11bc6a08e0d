import re

import numpy as np
import pytest
from scipy import stats

from lensplug import LensplugError
from lensplug.statistics import adjusted_p_values


def test_holm_by_hand():
    """Holm 1979: 4 x .01, 3 x .02, 2 x .03 raised to what is before it, 1 x .04 raised as well."""
    adjusted = adjusted_p_values(np.array([0.03, 0.01, np.nan, 0.04, 0.02]), "holm")
    np.testing.assert_allclose(adjusted, [0.06, 0.04, np.nan, 0.06, 0.06], rtol=1e-15)
    assert adjusted_p_values([0.5, 0.9], "holm").tolist() == [1.0, 1.0]


def test_holm_rejects_what_stepping_down_rejects():
    """The definition: from the smallest, reject while p <= level / (tests that remain)."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = rng.random(20) ** 4
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for rank, index in enumerate(np.argsort(p_values)):
                if p_values[index] > level / (20 - rank):
                    break
                rejected.add(int(index))
            assert set(np.flatnonzero(adjusted_p_values(p_values, "holm") <= level).tolist()) == rejected


@pytest.mark.parametrize(("name", "theirs"), [("benjamini_hochberg", "bh"), ("benjamini_yekutieli", "by")])
def test_false_discovery_rates_are_those_of_scipy(name, theirs):
    p_values = np.random.default_rng(0).random((4, 6)) ** 3
    with_nan = p_values.copy()
    with_nan[1, 2] = np.nan
    expected = stats.false_discovery_control(p_values, axis=None, method=theirs)
    np.testing.assert_array_equal(adjusted_p_values(p_values, name), expected.reshape(4, 6))
    adjusted = adjusted_p_values(with_nan, name)
    tested = ~np.isnan(with_nan)
    np.testing.assert_array_equal(adjusted[tested], stats.false_discovery_control(with_nan[tested], method=theirs))
    assert np.isnan(adjusted[1, 2])


def test_none_leaves_them_and_nothing_tested_stays():
    assert adjusted_p_values([0.2, 0.1], "none").tolist() == [0.2, 0.1]
    assert np.isnan(adjusted_p_values([np.nan, np.nan], "benjamini_hochberg")).all()


@pytest.mark.parametrize(
    ("p_values", "correction", "said"),
    [
        ([0.1, 1.2], "holm", "p_values lie between 0.1 and 1.2, expected 0 to 1."),
        (["x"], "holm", "p_values is the list ['x'], expected numbers between 0 and 1."),
        ([0.1], "max_statistic", "correction is 'max_statistic', expected 'holm', 'benjamini_hochberg',"),
    ],
)
def test_what_is_refused(p_values, correction, said):
    with pytest.raises(LensplugError, match=re.escape(said)):
        adjusted_p_values(p_values, correction)
