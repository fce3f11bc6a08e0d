"""Results put together: the examples of one after those of the other, and nothing that differs is hidden."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from support.results import every_result
from torch import Tensor

from lensplug import LensplugError, analysis
from lensplug.analysis.interventions.modality_ablation import ModalityAblation

WITHOUT_EXAMPLES = {
    "heads_by_layer",
    "agreement",
    "compare",
    "domain_neurons",
    "group_differences",
    "group_means",
    "probe",
}


@pytest.fixture(scope="module")
def results():
    return every_result()


def test_the_examples_of_both_come_one_after_the_other(results):
    for name, result in results.items():
        if name.partition(",")[0] in WITHOUT_EXAMPLES:
            with pytest.raises(LensplugError, match="has no examples to be combined"):
                type(result).combine([result, result])
            continue
        both = type(result).combine([result, result])
        assert both.provenance == result.provenance, name
        table, each = both.to_dataframe(), result.to_dataframe()
        if "example" in each:
            assert sorted(table["example"].unique()) == [0, 1, 2, 3], name
            assert len(table) == 2 * len(each)
            later = table[table["example"] >= 2].assign(example=lambda rows: rows["example"] - 2)
            for column in set(each):
                assert later[column].tolist() == pytest.approx(each[column].tolist(), nan_ok=True), (name, column)


@pytest.mark.parametrize(
    "name", ["attention_from", "attention_rollout, by layer", "deletion_curve", "gradient_rollout"]
)
def test_fields_are_those_put_together_by_hand(name, results):
    result = results[name]
    both = type(result).combine([result, result])
    shared = {"provenance", "fractions", "even", "layers", "residual", "head_fusion"}
    compared = [one.name for one in fields(result) if one.name not in shared]
    assert compared
    for field in compared:
        first, found = getattr(result, field), getattr(both, field)
        if isinstance(first, Tensor):
            expected = torch.cat([first, first])
            assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1)), field


def test_the_baseline_of_a_rollout_is_put_together_layer_by_layer(results):
    rollout = results["attention_rollout"]
    both = analysis.Rollout.combine([rollout, rollout])
    assert len(both.even) == len(rollout.even) > 0
    torch.testing.assert_close(both.lift, torch.cat([rollout.lift] * 2), equal_nan=True, rtol=0, atol=0)


def test_three_conditions_stay_three(results):
    ablation = results["modality_ablation"]
    both = ModalityAblation.combine([ablation, ablation])
    assert both.predicted.shape == (3, 4) and [len(texts) for texts in both.top_texts] == [4, 4, 4]
    assert both.accuracy == ablation.accuracy


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("attention_matrix", {"layer": 2}, "AttentionMatrix.layer differ, 1 and 2"),
        ("deletion_curve", {"fractions": torch.tensor([0.0, 0.2, 1.0])}, "DeletionCurve.fractions differ"),
        ("attention_flow", {"uniform": None}, "Flow.uniform differ"),
        ("attention_rollout", {"even": ()}, "Rollout.even differ"),
        ("modality_ablation", {"classes": ("Red", "Green")}, "ModalityAblation.classes differ"),
    ],
)
def test_what_differs_is_refused_by_name(name, changes, message, results):
    result = results[name]
    with pytest.raises(LensplugError, match=message):
        type(result).combine([result, replace(result, **changes)])


def test_other_lengths_kinds_and_nothing_are_refused(results):
    looked = results["attention_from"]
    with pytest.raises(LensplugError, match="only axis 0, the examples, may differ"):
        type(looked).combine([looked, replace(looked, values=looked.values[..., :-1])])
    with pytest.raises(LensplugError, match="results is the list"):
        type(looked).combine([looked, results["attention_rollout"]])
    with pytest.raises(LensplugError, match="there are no results"):
        type(looked).combine([])
