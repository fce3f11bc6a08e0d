"""Probes against scikit-learn's own cross-validation, planted directions, and chance."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.collected import collected, noise

import lensplug
from lensplug import LensplugError, LensplugWarning, analysis
from lensplug.analysis.probes.folds import shuffled_folds, splits


def planted(count: int = 120, width: int = 16, distance: float = 8.0, seed: int = 0):
    """Two layers: noise, and noise with the class along a direction, unequally scaled; the labels; the direction."""
    labels = torch.arange(count) % 2
    direction = torch.nn.functional.normalize(noise(width, seed=seed + 1), dim=0)
    vectors = noise(count, 2, width, seed=seed)
    vectors[:, 1] -= (vectors[:, 1] @ direction)[:, None] * direction  # the direction says the class alone
    vectors[:, 1] += distance * (labels[:, None] - 0.5) * direction + 3
    return vectors, ["a dog" if label else "a cat" for label in labels.tolist()], direction


@pytest.mark.parametrize("method", ["logistic", "ridge"])
def test_a_planted_direction_is_found_and_noise_is_not(method):
    vectors, labels, direction = planted(count=400)
    found = analysis.probe(collected(vectors), labels, method=method, standardise=False, shuffles=10)
    assert found.classes == ("a cat", "a dog") and found.direction.shape == (2, 1, 16)
    assert float(found.accuracy[1]) == 1.0 and float(found.direction[1, 0] @ direction) > 0.99
    assert 0.4 < float(found.accuracy[0]) < 0.6 and found.chance == 0.5
    assert bool(((found.shuffled_mean - 0.5).abs() < 0.05).all()) and bool((found.shuffled_limit < 0.6).all())
    low, high = found.interval
    assert float(low[1]) > 0.98 and float(high[1]) == pytest.approx(1)
    assert bool((low < found.accuracy + 1e-9).all())


@pytest.mark.parametrize("method", ["logistic", "ridge"])
@pytest.mark.parametrize("standardise", [True, False])
def test_adding_the_direction_raises_the_score_by_the_gain(method, standardise):
    vectors, labels, _ = planted(distance=1.0)
    vectors = vectors * torch.linspace(0.1, 5, 16)
    found = analysis.probe(
        collected(vectors), labels, method=method, standardise=standardise, shuffles=0, regularisation=3
    )
    pipeline = make_pipeline(*([StandardScaler()] if standardise else []), CLASSIFIERS[method]())
    pipeline.fit(vectors[:, 1].numpy(), labels)
    x, (d, gain, bias) = vectors[:, 1], (getattr(found, name)[1, 0] for name in ("direction", "gain", "bias"))
    score = pipeline.decision_function
    np.testing.assert_allclose(gain * (x @ d) + bias, score(x.numpy()), atol=1e-3)
    np.testing.assert_allclose(score((x + 2 * d).numpy()) - score(x.numpy()), 2 * float(gain), rtol=1e-3)
    assert float(d.norm()) == pytest.approx(1) and float(found.spread[1, 0]) == pytest.approx(
        float((x @ d).std(correction=0)), rel=1e-4
    )


CLASSIFIERS: dict[str, Any] = {
    "logistic": lambda: LogisticRegression(C=1 / 3, max_iter=1000),
    "ridge": lambda: RidgeClassifier(alpha=3),
}


@pytest.mark.parametrize("method", ["logistic", "ridge"])
@pytest.mark.parametrize("classes", [2, 4])
def test_accuracies_are_those_of_scikit_learn_s_cross_validation(method, classes):
    labels = np.arange(90) % classes
    vectors = noise(90, 3, 12) + 0.6 * torch.nn.functional.one_hot(torch.as_tensor(labels), 12)[:, None]
    found = analysis.probe(
        collected(vectors), labels, method=method, folds=5, shuffles=3, regularisation=3.0, seed=7
    )  # fmt: skip
    pipeline = make_pipeline(StandardScaler(), CLASSIFIERS[method]())
    folds = StratifiedKFold(5, shuffle=True, random_state=7)
    for layer in range(3):
        x = vectors[:, layer].numpy()
        expected = cross_val_score(pipeline, x, labels, cv=folds)
        np.testing.assert_array_equal(found.fold_accuracy[layer], expected)
        predicted = found.predicted[layer].numpy()
        assert float(found.balanced_accuracy[layer]) == pytest.approx(balanced_accuracy_score(labels, predicted))
        assert float(found.accuracy[layer]) == (predicted == labels).mean()
    generator = np.random.default_rng(7)
    for shuffle in range(3):
        drawn = generator.permutation(labels)
        expected = cross_val_score(pipeline, vectors[:, 2].numpy(), drawn, cv=folds, scoring=None)
        assert float(found.shuffled[2, shuffle]) == pytest.approx(expected.mean())
    assert found.direction.shape == (3, 1 if classes == 2 else 4, 12)


def test_each_head_has_a_probe_as_alone():
    vectors, labels = noise(40, 2, 3, 8), [True, False] * 20
    vectors[:, 1, 2, 5] += torch.tensor(labels) * 9
    found = analysis.probe(collected(vectors, "z"), labels, shuffles=2)
    assert found.direction.shape == (2, 3, 1, 8) and found.predicted.shape == (2, 3, 40)
    alone = analysis.probe(collected(vectors[:, :, 2], "z"), labels, shuffles=2)
    for name in ("predicted", "shuffled", "direction", "gain", "bias", "spread"):
        assert torch.equal(getattr(found, name)[:, 2], getattr(alone, name)), name
    table = found.to_dataframe().set_index(["layer", "head"])
    assert table.loc[(1, 2), "accuracy"] == 1 and table.loc[(1, 2), "low"] == pytest.approx(
        float(found.interval[0][1, 2])
    )
    assert alone.to_dataframe()["head"].tolist() == [-1, -1]


def picture_questions(pictures: int = 30, questions: int = 4):
    """Vectors that say which picture, and nothing of the class; the class of each picture; the pictures."""
    pictures_of = np.repeat(np.arange(pictures), questions)
    labels = (np.random.default_rng(0).permutation(pictures) % 2)[pictures_of]
    vectors = 6 * noise(pictures, 1, 40, seed=2)[pictures_of] + 0.1 * noise(len(labels), 1, 40, seed=3)
    return collected(vectors), labels, pictures_of


def test_groups_are_never_in_training_and_test_at_once():
    activations, labels, pictures = picture_questions()
    leaking = analysis.probe(activations, labels, shuffles=0)
    found = analysis.probe(activations, labels, groups=[f"picture {index}.png" for index in pictures], shuffles=5)
    assert float(leaking.accuracy[0]) == 1.0 and float(found.accuracy[0]) < 0.75
    for picture in set(pictures.tolist()):
        assert len(set(found.fold[torch.as_tensor(pictures == picture)].tolist())) == 1
    expected = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(labels, labels, pictures)
    for fold, (_, held_out) in enumerate(expected):
        assert (found.fold == fold).nonzero()[:, 0].tolist() == held_out.tolist()
    assert torch.equal(found.group, torch.as_tensor(pictures))
    assert float(found.shuffled_mean[0]) < 0.75


def test_groups_exchange_whole_labels_and_examples_theirs_where_groups_are_mixed():
    _, labels, pictures = picture_questions()
    for drawn, found in shuffled_folds(labels, pictures, folds=5, shuffles=5, seed=0):
        table = pd.DataFrame({"picture": pictures, "label": drawn}).groupby("picture")["label"]
        assert (table.nunique() == 1).all() and drawn.sum() == labels.sum() and (drawn != labels).any()
        for train, held_out in found:
            assert not set(pictures[train]) & set(pictures[held_out])
    mixed = np.arange(120) % 2
    for drawn, _ in shuffled_folds(mixed, pictures, folds=5, shuffles=5, seed=0):
        table = pd.DataFrame({"picture": pictures, "label": drawn}).groupby("picture")["label"]
        assert drawn.sum() == 60 and table.sum().nunique() > 1


def test_the_same_seed_gives_the_same_numbers_and_another_other_folds():
    vectors, labels, _ = planted(distance=1.0)
    first, again = (analysis.probe(collected(vectors), labels, shuffles=2, seed=3) for _ in range(2))
    other = analysis.probe(collected(vectors), labels, shuffles=2, seed=4)
    assert torch.equal(first.predicted, again.predicted) and torch.equal(first.shuffled, again.shuffled)
    assert torch.equal(first.direction, other.direction)  # of all examples
    assert not torch.equal(first.fold, other.fold)
    numbers = np.array(labels) == "a dog"
    assert [len(held_out) for _, held_out in splits(numbers.astype(int), None, 5, 3)] == [24] * 5


@pytest.mark.parametrize(
    "labels",
    [
        pd.Series(["b", "a"] * 20, dtype="category"),
        np.array(["b", "a"] * 20),
        torch.tensor([1, 0] * 20),
        torch.tensor([True, False] * 20),
        tuple([np.int64(7), np.int64(-7)] * 20),
    ],
)
def test_labels_as_tables_arrays_and_tensors_have_them(labels):
    found = analysis.probe(collected(noise(40, 1, 4)), labels, shuffles=0)
    assert found.target.tolist() == [1, 0] * 20
    assert found.classes in (("a", "b"), (0, 1), (False, True), (-7, 7))


def test_no_shuffles_is_no_control():
    found = analysis.probe(collected(noise(20, 1, 4)), [0, 1] * 10, shuffles=0)
    assert found.shuffled.shape == (1, 0)
    assert bool(found.shuffled_mean.isnan().all()) and bool(found.shuffled_limit.isnan().all())


def test_progress_names_each_layer():
    said: list[str] = []
    analysis.probe(collected(noise(20, 2, 4)), [0, 1] * 10, shuffles=0, progress=said.append)
    assert said == ["probing layer 0, 1 of 2", "probing layer 1, 2 of 2"]


def test_provenance_says_what_was_probed_and_how(tmp_path):
    found = analysis.probe(collected(noise(20, 1, 4)), [0, 1] * 10, shuffles=0, method="ridge", regularisation=2)
    assert found.provenance.analysis == "probe" and "scikit-learn" in found.provenance.versions
    assert found.provenance.options == {
        "hook": "resid_post", "method": "ridge", "folds": "5", "regularisation": "2", "standardise": "True",
        "shuffles": "0", "seed": "0", "groups": "each example alone",
    }  # fmt: skip
    assert "ridge probe of resid_post at one position; 5 folds" == found.provenance.convention
    read: Any = lensplug.read(found.save(tmp_path / "probe"))
    assert read.to_dataframe().equals(found.to_dataframe()) and read.classes == (0, 1)


def test_two_checkpoints_are_compared_example_by_example():
    vectors, labels, _ = planted(distance=1.0)
    first = analysis.probe(collected(vectors), labels, shuffles=0)
    second = analysis.probe(collected(vectors + noise(*vectors.shape, seed=9), weights="other"), labels, shuffles=0)
    table = analysis.compare(first, second).to_dataframe()
    difference = (second.correct.double() - first.correct.double())[1]
    row = table[table["layer"] == 1].iloc[0]
    assert row["accuracy_difference"] == pytest.approx(float(difference.mean()))
    assert row["standard_error_difference"] == pytest.approx(float(difference.std()) / len(difference) ** 0.5, rel=1e-4)


def test_fits_that_do_not_converge_are_said_once(monkeypatch):
    monkeypatch.setattr("lensplug.analysis.probes.classifiers.ITERATIONS", 1)
    vectors, labels, _ = planted()
    with pytest.warns(LensplugWarning, match="fits did not converge in 1 iterations") as caught:
        analysis.probe(collected(vectors), labels, shuffles=1)
    assert len([warning for warning in caught if issubclass(warning.category, LensplugWarning)]) == 1
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error", LensplugWarning)
        analysis.probe(collected(vectors), labels, shuffles=1)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(LensplugError, match=r"probe needs scikit-learn: pip install 'lensplug\[probes\]'"):
        analysis.probe(collected(noise(20, 1, 4)), [0, 1] * 10)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1] * 9, {}, "there are 18 labels for 20 examples"),
        ([1] * 20, {}, "every example is 1: a probe needs examples of two classes"),
        ([0, 1] * 8 + [2] * 4, {}, "the class 2 has 4 examples, and each of 5 folds needs one: give more, folds=4, or"),
        (["a", 1] * 10, {}, r"labels are of several kinds, 'a' and 1 \(example 1\)"),
        (["a", None] * 10, {}, r"labels\[1\] is None, expected a text"),
        ([0.5, 1.0] * 10, {}, r"labels\[0\] is 0.5, expected a text"),
        ("ab" * 10, {}, "labels is 'abab.*expected a list"),
        ([0, 1] * 10, {"groups": [1, 2]}, "there are 2 groups for 20 examples"),
        ([0, 1] * 10, {"groups": [0, 1] * 10}, "the class 0 has 1 group, and each of 5 folds needs one: give more, f"),
        ([0, 1] * 10, {"folds": 1}, "folds is 1, expected at least 2"),
        ([0, 1] * 10, {"shuffles": -1}, "shuffles is -1, expected at least 0"),
        ([0, 1] * 10, {"shuffles": 10**9}, "shuffles is 1000000000, expected at most 1000: each is 5 fits a layer"),
        (b"ab" * 10, {}, "labels is a bytes, expected a list"),
        ([0, 1] * 10, {"regularisation": 0}, "regularisation is 0, expected a number above 0"),
        ([0, 1] * 10, {"seed": 2**32}, "seed is 4294967296, expected less than"),
        ([0, 1] * 10, {"method": "forest"}, "method is 'forest', expected 'logistic' or 'ridge'"),
    ],
)
def test_bad_arguments_are_refused(labels, options, message):
    with pytest.raises(LensplugError, match=message):
        analysis.probe(collected(noise(20, 1, 4)), labels, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_by_layer_and_example(value):
    vectors = noise(20, 3, 4)
    vectors[7, 2, 1] = value
    with pytest.raises(LensplugError, match="of layer 2 hold NaN or infinity in 1 of 20 examples, the first is ex.* 7"):
        analysis.probe(collected(vectors), [0, 1] * 10, shuffles=0)
