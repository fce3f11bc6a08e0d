"""Deletion curves against the eager model with scores set to minus infinity by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support.models import scene

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.positions.tokens import single_token

STEPS = 4


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


@pytest.fixture(scope="module")
def batch(lens):
    prompts = ["What is the color? Answer single word.", "What is the shape? Answer in a phrase."]
    return lens.prepare(prompts, images=[[scene(96, 96)], [scene(48, 96, 1)]])


@pytest.fixture(scope="module")
def relevance(batch):
    return torch.rand(batch.tokens.shape, generator=torch.Generator().manual_seed(3))


def by_hand(lens, batch, example, gone, token, position):
    """Log-probability from the eager model, the deleted keys' scores at minus infinity in every layer."""
    image = batch.modality.mask("image")[example]
    embeds = batch.embeds[example : example + 1].clone()
    embeds[0, gone] = embeds[0, image].mean(dim=0)
    own = dataclasses.replace(
        batch, embeds=embeds, tokens=batch.tokens[example][None], attention_mask=batch.attention_mask[example][None]
    )

    def hide(scores, hook):
        scores[..., gone] = -torch.inf
        return scores

    with torch.no_grad():
        logits = lens.run_with_hooks(own, fwd_hooks=[(lambda name: name.endswith("hook_attn_scores"), hide)])
    return logits[0, position].log_softmax(dim=-1)[token]


@pytest.mark.parametrize("position", [-1, -3])
def test_equals_scores_hidden_by_hand(lens, batch, relevance, position):
    ids = torch.tensor([single_token("Red", lens.tokenizer), 11])
    curve = analysis.deletion_curve(lens, batch, relevance, ids, position=position, steps=STEPS, draws=0, batch_size=3)
    assert curve.random.shape == (2, 0, STEPS + 1) and "random" not in curve.area
    for example in range(2):
        image = batch.modality.mask("image")[example].nonzero()[:, 0]
        order = image[relevance[example, image].argsort(descending=True)]
        for step in range(STEPS + 1):
            count = round(len(image) * step / STEPS)
            for found, gone in (
                (curve.most_first, order[:count]),
                (curve.least_first, order.flip(0)[:count]),
            ):
                expected = by_hand(lens, batch, example, gone, int(ids[example]), position)
                assert float(found[example, step]) == pytest.approx(float(expected), abs=2e-4)
    assert float((curve.most_first - curve.least_first).abs().max()) > 0.01, "this test can fail"
    torch.testing.assert_close(curve.most_first[:, [0, -1]], curve.least_first[:, [0, -1]], atol=1e-4, rtol=0)


def test_targets_are_words_differences_and_answers(lens, batch, relevance):
    curve = lambda target, inputs=batch, values=relevance: analysis.deletion_curve(  # noqa: E731
        lens, inputs, values, target, steps=2, draws=0
    )
    red, blue, both = curve("Red"), curve("Blue"), curve(("Red", "Blue"))
    torch.testing.assert_close(both.most_first, red.most_first - blue.most_first, atol=1e-4, rtol=0)
    answer = lens.generate(batch, max_new_tokens=3)
    wide = torch.nn.functional.pad(relevance, (0, 3))
    found = curve(answer, answer.inputs, wide)
    with torch.no_grad():
        logits = lens.model(answer.inputs).log_softmax(dim=-1)
    own = logits[:, -4:-1].gather(2, answer.tokens[:, :, None])[..., 0]
    expected = (own * answer.inputs.modality.mask("generated")[:, -3:]).sum(dim=1)
    torch.testing.assert_close(found.most_first[:, 0], expected, atol=1e-3, rtol=0)


def test_areas_random_orders_and_their_interval(lens, batch, relevance):
    curve = analysis.deletion_curve(lens, batch, relevance, "Red", steps=STEPS, draws=3)
    drawn = curve.random.numpy()
    areas = (drawn[..., 1:] + drawn[..., :-1]).sum(axis=-1) / (2 * STEPS)  # trapezoids
    np.testing.assert_allclose(curve.area["random"].numpy(), areas.mean(axis=1), rtol=1e-5)
    interval = curve.random_interval.numpy()
    np.testing.assert_allclose(interval[:, 1] - interval[:, 0], 2 * 1.96 * areas.std(axis=1, ddof=1), rtol=1e-4)
    again = analysis.deletion_curve(lens, batch, relevance, "Red", steps=STEPS, draws=3)
    other = analysis.deletion_curve(lens, batch, relevance, "Red", steps=STEPS, draws=3, seed=1)
    assert torch.equal(again.random, curve.random) and not torch.equal(other.random, curve.random)
    assert curve.deleted.tolist() == batch.modality.mask("image").sum(dim=1).tolist()
    table = curve.to_dataframe()
    assert len(table) == 2 * 5 * (STEPS + 1)
    both = analysis.DeletionCurve.combine([curve, again])
    assert both.deleted.shape == (4,) and both.summary().examples.tolist() == [4, 4, 4]
    mean = both.summary().loc["most relevant first", "area"]
    assert mean == pytest.approx(float(curve.area["most relevant first"].mean()), rel=1e-5)
    assert views.draw(both).data[0].mode == "lines", "a band has no markers"
    assert "area" in views.draw(both).data[1].name and "96 examples" not in views.draw(both).layout.title.text
    with pytest.raises(LensplugError, match="DeletionCurve.fractions differ"):
        analysis.DeletionCurve.combine([curve, analysis.deletion_curve(lens, batch, relevance, "Red", steps=2)])


def test_a_seed_for_each_example_makes_its_orders_its_own(lens, batch, relevance):
    """Equal to the example alone, whatever is beside it; and to one seed for all, where there is one example."""
    together = analysis.deletion_curve(lens, batch, relevance, ("Red", "Blue"), steps=STEPS, draws=2, seed=[7, 8])
    for example, seed in enumerate((7, 8)):
        own = {name: getattr(batch, name)[example][None] for name in ("embeds", "tokens", "attention_mask")}
        among = batch.modality.mask("image")[example][None]
        alone = analysis.deletion_curve(
            lens, dataclasses.replace(batch, **own), relevance[example], ("Red", "Blue"), among=among, steps=STEPS,
            draws=2, seed=seed,
        )  # fmt: skip
        torch.testing.assert_close(together.random[example], alone.random[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(LensplugError, match="seed has 3 entries for 2 examples"):
        analysis.deletion_curve(lens, batch, relevance, "Red", seed=[1, 2, 3])


def test_averaged_over_fractions_numbers_are_areas(lens, batch, relevance):
    curve = analysis.deletion_curve(lens, batch, relevance, "Red", steps=STEPS, draws=3)
    averaged = curve.over_examples().averaged("fraction")
    assert averaged.labels == {"order": ["most relevant first", "least relevant first", "random order"]}
    drawn = curve.random.mean(dim=1)
    curves = torch.stack([curve.most_first, curve.least_first, drawn], dim=1).double()
    areas = torch.from_numpy(np.trapezoid(curves.numpy(), curve.fractions.double().numpy()))
    torch.testing.assert_close(areas.float(), torch.stack(list(curve.area.values()), dim=1))
    torch.testing.assert_close(averaged.values["log_probability"], areas, atol=1e-6, rtol=1e-6)
    below = averaged.values["below_random"]
    torch.testing.assert_close(below[:, :2], areas[:, 2:] - areas[:, :2], atol=1e-6, rtol=1e-5)
    assert below[:, 2].isnan().all()


def test_equal_values_are_put_in_a_random_order(lens, batch):
    flat = torch.zeros(batch.tokens.shape)
    first, second = (
        analysis.deletion_curve(lens, batch, flat, "Red", steps=STEPS, draws=0, seed=seed) for seed in (0, 1)
    )
    assert not torch.equal(first.most_first[:, 1], second.most_first[:, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevance": torch.zeros(7)}, r"relevance has the shape \[7\], the inputs \[2, "),
        ({"among": "audio"}, "example 0 has no audio positions to delete: it has text, image"),
        ({"among": "picture"}, "among is 'picture'"),
        ({"among": torch.ones(2, 3)}, r"among has the shape \[2, 3\]"),
        ({"target": "Zebra!"}, "'Zebra!' is"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_what_does_not_fit_is_refused(lens, batch, relevance, change, message):
    options = {"relevance": relevance, "target": "Red", **change}
    with pytest.raises(LensplugError, match=message):
        analysis.deletion_curve(lens, batch, options.pop("relevance"), options.pop("target"), **options)
    gone = relevance.masked_fill(batch.modality.mask("image"), torch.nan)
    with pytest.raises(LensplugError, match="relevance is NaN at positions that are to be deleted"):
        analysis.deletion_curve(lens, batch, gone, "Red")


def test_nothing_is_left_behind(lens, batch, relevance):
    with torch.no_grad():
        before = lens.model(batch)
    analysis.deletion_curve(lens, batch, relevance, "Red", steps=1, draws=0)
    with torch.no_grad():
        assert torch.equal(lens.model(batch), before)


def test_what_several_orders_delete_alike_is_run_once(lens, batch, relevance, monkeypatch):
    runs, logits_at = [], lens.logits_at

    def counting(changed, *args, **options):
        runs.append(len(changed.embeds))
        return logits_at(changed, *args, **options)

    monkeypatch.setattr(lens, "logits_at", counting)
    curve = analysis.deletion_curve(lens, batch, relevance, "Red", steps=2, draws=3, batch_size=4)
    # For each of two examples: nothing, everything, and half of the positions in five orders.
    assert runs == [4, 4, 4, 2]
    assert bool((curve.random[:, :, 0] == curve.most_first[:, :1]).all())
    assert len(set(curve.random[0, :, 1].tolist())) == 3, "random orders are not alike"
