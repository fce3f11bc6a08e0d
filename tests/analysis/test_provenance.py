"""How a result was made, and what is therefore not combined or compared: refused by the name of what differs."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.caches import ROTARY, cache_of_patterns, causal_patterns, run, text_model, tokens

from lensplug import LensplugError, analysis
from lensplug.analysis import HeadSpecialization
from lensplug.analysis.provenance import Provenance
from lensplug.positions.modality_map import ModalityMap

AUDIO = 90
IDS = torch.tensor([[1, AUDIO, AUDIO, 2, 3, 4]])
MAP = ModalityMap.build(IDS, torch.ones_like(IDS), placeholder_ids={"audio": AUDIO})


def heads(seed=0, model=None, **options):
    return analysis.head_specialization(cache_of_patterns(causal_patterns(2, 1, 3, 6, seed), model), MAP, **options)


def altered(result, **changes):
    return replace(result, provenance=replace(result.provenance, **changes))


def test_two_checkpoints_of_one_name_are_not_combined():
    form = {**ROTARY, "n_layers": 2}
    first, second = (heads(model=text_model(seed, **form)) for seed in (0, 1))
    assert first.provenance.model == second.provenance.model
    with pytest.raises(LensplugError, match=f"fingerprint of the weights .*{first.provenance.weights}.* in result 1"):
        HeadSpecialization.combine([first, second])
    assert analysis.compare(first, second).provenances[1].weights == second.provenance.weights
    assert len(HeadSpecialization.combine([first, heads(1, text_model(0, **form))]).query) == 2


@pytest.mark.parametrize("put_together", [lambda *both: HeadSpecialization.combine(both), analysis.compare])
def test_results_of_different_queries_are_refused_by_name(put_together):
    with pytest.raises(LensplugError, match="the query position: '-1' in the first and '-3' in result 1"):
        put_together(heads(), heads(query=-3))
    put_together(heads(), heads(1, query=-1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "the dtype: 'float32' in the first and 'float16' in result 1"),
        ({"model": "other"}, "the model: 'text-model' .* 'other'"),
        ({"options": {"seed": "1"}}, "the options: "),
        ({"convention": "another", "dtype": "x"}, "the dtype: .*; the convention: "),
    ],
)
def test_what_differs_is_named(changes, message):
    with pytest.raises(LensplugError, match=message):
        HeadSpecialization.combine([heads(), altered(heads(), **changes)])


def test_other_versions_warn_once_and_are_combined():
    old = altered(heads(), versions={**heads().provenance.versions, "torch": "1.0"})
    older = altered(heads(), versions={**heads().provenance.versions, "torch": "0.9"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        whole = HeadSpecialization.combine([heads(), old, old, older])
    assert len(caught) == 1 and len(whole.query) == 4
    assert f"torch ({torch.__version__.split('+')[0]}, 1.0, 0.9)" in str(caught[0].message)
    with pytest.warns(UserWarning, match="results of different versions of torch .* are compared"):
        analysis.compare(heads(), old)


def test_one_query_for_each_example_is_said_so():
    made = Provenance.of_model(None, "x", "", query=torch.tensor([-1, -2]))
    assert made.query == "one for each example"
    assert Provenance.of_model(None, "x", "", query=torch.tensor([-1])).query == "-1"
    assert Provenance.of_model(None, "x", "").query == ""


def test_provenance_costs_little():
    """Versions are looked up once: four of them took 6 ms each time."""
    cache = cache_of_patterns(causal_patterns(1, 1, 1, 4))
    Provenance.of(cache, "x", "")
    start = time.process_time()
    for _ in range(20):
        Provenance.of(cache, "x", "")
    assert (time.process_time() - start) / 20 < 2e-3


def several(seeds, form):
    return HeadSpecialization.combine([heads(seed, text_model(form, **{**ROTARY, "n_layers": 2})) for seed in seeds])


def test_the_standard_error_of_a_difference_is_of_pairs():
    """Numpy on the differences of each example; the difference of the errors, which was there, has either sign."""
    a, b = several(range(4), 0), several(range(10, 14), 1)
    table = analysis.compare(a, b).table
    differences = (b.ratio - a.ratio).flatten(1).double().numpy()
    expected = differences.std(axis=0, ddof=1) / 2
    np.testing.assert_allclose(table.ratio_standard_error_difference, expected, rtol=1e-4)
    assert (table.ratio_standard_error_difference > 0).all()
    np.testing.assert_allclose(table.ratio_difference, differences.mean(axis=0), atol=1e-5)
    same = analysis.compare(a, a).table
    assert same.ratio_standard_error_difference.max() == 0 < same.ratio_standard_error_a.min()


def test_without_pairs_the_errors_are_squared_and_added():
    a, b = several(range(4), 0), several(range(10, 13), 1)
    table = analysis.compare(a, b).table
    expected = np.sqrt(a.error("ratio").flatten() ** 2 + b.error("ratio").flatten() ** 2)
    np.testing.assert_allclose(table.ratio_standard_error_difference, expected, rtol=1e-5)


def test_three_results_with_names():
    results = [heads(seed) for seed in range(3)]
    made = analysis.compare(*results, names=("none", "half", "full"))
    for name, own in zip(made.names, results, strict=True):
        assert made.table[f"ratio_{name}"].tolist() == pytest.approx(own.ratio.flatten().tolist())
    for name, own in zip(made.names[1:], results[1:], strict=True):
        expected = (own.ratio - results[0].ratio).flatten().tolist()
        assert made.table[f"ratio_{name}_difference"].tolist() == pytest.approx(expected, abs=1e-6)
        assert made.difference_column("ratio", name) == f"ratio_{name}_difference"
    largest = made.largest(1, name="full")
    assert abs(float(largest.ratio_full_difference.iloc[0])) == float(made.table.ratio_full_difference.abs().max())
    two = analysis.compare(*results[:2], names=("before", "after"))
    assert {"ratio_before", "ratio_after", "ratio_difference"} <= set(two.table)
    with pytest.raises(LensplugError, match="expected 2 different words"):
        analysis.compare(*results[:2], names=("a", "a"))
    with pytest.raises(LensplugError, match="'none' is not one of the compared results 'half', 'full'"):
        made.largest(name="none")


def test_the_agreement_of_two_checkpoints_names_both():
    ids = tokens(1, 6)
    maps = {
        name: analysis.received_attention(run(text_model(seed, **ROTARY), ids)[1]) for seed, name in enumerate("ab")
    }
    made = analysis.agreement(maps)
    assert made.provenance.weights == " and ".join(one.provenance.weights for one in maps.values())
