"""Counts of firing neurons against a plain loop, and the selection against numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.built import ENGINES

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.analysis import NeuronActivity
from lensplug.analysis.provenance import Provenance


def counted(probability, positions: int = 100, domains=("a", "b", "c")) -> NeuronActivity:
    """Activity with these probabilities, [layer neuron domain], in one modality."""
    fired = (torch.tensor(probability).permute(2, 0, 1) * positions).round().long()[:, None]
    made = Provenance("neuron_activity", "model", "float32", "", {})
    return NeuronActivity(
        fired, torch.full((len(domains), 1), positions), tuple(domains), ("image",), len(domains), made
    )


BY_HAND = [[[0.9, 0.1, 0.1], [0.5, 0.5, 0.5]], [[0.0, 0.0, 0.0], [0.1, 0.9, 0.02]]]
"""[layer neuron domain]"""


def test_entropies_worked_by_hand():
    result = analysis.domain_neurons(counted(BY_HAND), share=1, percentile=0)
    expected = torch.tensor([[0.600166, 1.098612], [math.nan, 0.415218]], dtype=torch.float64)
    torch.testing.assert_close(result.entropy, expected, atol=1e-6, rtol=0, equal_nan=True)


def test_the_lowest_entropies_are_selected_and_dead_neurons_never():
    result = analysis.domain_neurons(counted(BY_HAND), share=0.5, percentile=0.5)
    assert result.threshold == 0.1  # the sixth of twelve
    assert [result.of(name) for name in "abc"] == [[(0, 0)], [(1, 1)], []]
    assert result.count.tolist() == [[1, 0], [0, 1], [0, 0]]
    every = analysis.domain_neurons(counted(BY_HAND), share=1, percentile=0)
    assert not every.selected[:, 1, 0].any() and every.selected.any(dim=0).sum() == 3
    assert every.of("b") == [(1, 1), (0, 0), (0, 1)]


def test_what_is_rare_everywhere_is_left_out():
    rare = [[[0.02, 0.0, 0.0], [0.9, 0.8, 0.7]]]
    assert analysis.domain_neurons(counted(rare), share=0.5, percentile=0.5).selected.nonzero()[:, 2].tolist() == [
        1,
        1,
        1,
    ]
    assert analysis.domain_neurons(counted(rare), share=0.5, percentile=0).of("a") == [(0, 0)]


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.95])
def test_the_selection_of_random_counts_against_numpy(percentile):
    probability = np.random.default_rng(0).integers(0, 101, (3, 40, 4)) / 100
    result = analysis.domain_neurons(counted(probability, domains="wxyz"), share=0.1, percentile=percentile)
    threshold = np.quantile(probability, percentile, method="inverted_cdf")
    assert result.threshold == threshold
    portion = probability / probability.sum(axis=2, keepdims=True)
    entropy = -np.where(portion > 0, portion * np.log(np.where(portion > 0, portion, 1)), 0).sum(axis=2)
    entropy[~(probability > threshold).any(axis=2)] = np.inf
    for layer, neuron in sorted(np.ndindex(3, 40), key=lambda place: entropy[place])[:12]:
        expected = probability[layer, neuron] > threshold
        assert result.selected[:, layer, neuron].tolist() == expected.tolist() or entropy[layer, neuron] == np.inf
    assert int(result.selected.any(dim=0).sum()) == min(12, int(np.isfinite(entropy).sum()))


@pytest.fixture(scope="module", params=ENGINES)
def run(request, lens, batch):
    wrapped = lensplug.wrap(lens.hf_model, lens.processor, engine=request.param)
    return wrapped.run_with_cache(batch, needs=analysis.neuron_activity)[1]


def test_counts_are_those_of_a_plain_loop(run, batch):
    domains = ("flowers", "cars", "flowers")
    activity = analysis.neuron_activity(run, batch, domain=domains)
    assert activity.domains == ("cars", "flowers") and activity.examples == 3
    assert activity.modalities == ("text", "image")
    for layer in range(activity.fired.shape[2]):
        before = run[f"blocks.{layer}.mlp.hook_pre"]
        for row, domain in enumerate(activity.domains):
            for column, modality in enumerate(activity.modalities):
                expected = sum(
                    (before[example][batch.modality.mask(modality)[example]] > 0).sum(dim=0)
                    for example, name in enumerate(domains)
                    if name == domain
                )
                assert torch.equal(activity.fired[row, column, layer], expected)


def test_gates_are_those_of_the_hugging_face_model(lens, inputs):
    found = []
    mlp = lens.hf_model.get_decoder().layers[1].mlp
    handle = mlp.gate_proj.register_forward_hook(lambda module, args, output: found.append(output))
    lens.hf_model(**inputs.model_inputs)
    handle.remove()
    activity = analysis.neuron_activity(lens.run_with_cache(inputs)[1], inputs, domain="one")
    assert torch.equal(activity.fired[0, :, 1].sum(dim=0), (found[0][0] > 0).sum(dim=0))


def test_counts_of_batches_add_up(lens, run, batch):
    whole = analysis.neuron_activity(run, batch, domain=("b", "a", "b"))
    parts = [
        analysis.neuron_activity(run.apply_slice_to_batch_dim([index]), batch[index : index + 1], domain=name)
        for index, name in enumerate("bab")
    ]
    both = NeuronActivity.combine(parts)
    assert both.domains == whole.domains and both.modalities == whole.modalities and both.examples == 3
    assert torch.equal(both.fired, whole.fired) and torch.equal(both.positions, whole.positions)
    with pytest.raises(LensplugError, match="the dtype"):
        other = replace(parts[0], provenance=replace(parts[0].provenance, dtype="bfloat16"))
        NeuronActivity.combine([parts[0], other])


def test_a_domain_that_lacks_a_modality(run, batch):
    activity = analysis.neuron_activity(run, batch, domain=("pictures", "pictures", "words"))
    assert bool(activity.probability("image")[1].isnan().all())
    with pytest.raises(LensplugError, match="the domain 'words' has no image position"):
        analysis.domain_neurons(activity, modality="image")
    assert analysis.domain_neurons(activity).domains == ("pictures", "words")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda activity: analysis.domain_neurons(activity, share=0), "share is 0, expected a fraction above 0"),
        (lambda activity: analysis.domain_neurons(activity, share=1.5), "share is 1.5"),
        (lambda activity: analysis.domain_neurons(activity, percentile=1), "percentile is 1, expected"),
        (lambda activity: analysis.domain_neurons(activity, modality="audio"), "no position was 'audio'"),
        (lambda activity: analysis.domain_neurons(activity).of("d"), "there is no domain 'd': there are 'a', 'b', 'c'"),
    ],
)
def test_bad_options_are_refused(call, message):
    with pytest.raises(LensplugError, match=message):
        call(counted(BY_HAND))


def test_domains_of_another_number_and_one_domain_are_refused(run, batch):
    with pytest.raises(LensplugError, match="there are 2 domains for 3 examples"):
        analysis.neuron_activity(run, batch, domain=("a", "b"))
    with pytest.raises(LensplugError, match="there is one domain, 'a'"):
        analysis.domain_neurons(analysis.neuron_activity(run, batch, domain="a"))
    with pytest.raises(LensplugError, match="give the map of the inputs that were run"):
        analysis.neuron_activity(run, batch[0:1], domain="a")


def test_the_figure_of_counts_has_a_line_for_each_domain_and_modality_that_occurred(run, batch):
    activity = analysis.neuron_activity(run, batch, domain=("pictures", "pictures", "words"))
    lines = {line.name: list(line.x) for line in views.draw(activity).data}
    assert set(lines) == {"pictures, text", "pictures, image", "words, text"}
    assert lines["pictures, image"] == pytest.approx(activity.probability("image")[0].mean(dim=-1).tolist())


def test_the_figure_has_a_bar_for_each_domain():
    result = analysis.domain_neurons(counted(BY_HAND, domains=("<b>", "b", "c")), share=0.5, percentile=0.5)
    figure = views.draw(result)
    assert [bar.name for bar in figure.data] == ["&lt;b&gt;", "b", "c"]
    assert [list(bar.x) for bar in figure.data] == result.count.tolist()
