"""Many knockouts of one prompt against one run of the whole prompt for each, and against hooks on the scores."""

from __future__ import annotations

import pytest
import torch
from support import beside, models
from support.built import ENGINES

import lensplug
from lensplug.interventions import Knockout, Scale


def last_logits(logits):
    return logits[:, 0, 0].float()


def under_each(lens, inputs, variants, rows, read=last_logits):
    with lens.edited_runs(inputs, torch.tensor([rows])) as runs:
        return runs.under_each(variants, read)


def one_by_one(lens, inputs, variants, row):
    """A run of the whole prompt under each."""
    found = []
    for knockouts in variants:
        with lens.intervene(*knockouts):
            found.append(lens.logits_at(inputs, torch.tensor([[row]]))[0, 0].float())
    return torch.stack(found)


def every_kind(n_layers):
    several = [Knockout([0, 1, 2], [-3, -1], layers=[0]), Knockout([4], "last", heads=[1])]
    of_layers = [
        [Knockout(keys, queries, layers=layer)]
        for layer in range(n_layers)
        for keys, queries in (([1, 2], "last"), ([0, 1, 2], [5, 6]), ([0], "all"))
    ]
    return [
        [],
        *of_layers,
        several,
        [Knockout([2], "last", heads=[(0, 1), (1, 0)])],
        [Knockout([2], "last", layers=[])],
    ]


def compared(lens, inputs, variants, row=None, tolerance=3e-5):
    """Both ways agree, and what is cut matters."""
    row = inputs.shape[1] - 1 if row is None else row
    found = under_each(lens, inputs, variants, [row])
    expected = one_by_one(lens, inputs, variants, row)
    assert models.largest_difference(found, expected) < tolerance * float(expected.abs().max())
    assert torch.equal(found[0], found[-1]), "no layers are no change at all"
    assert models.largest_difference(found[0], found) > 1e-2 * float(expected.abs().max())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral-window", "qwen2-window-some-layers", "qwen3"])
def test_equal_to_runs_of_the_whole_prompt(engine, name):
    lens = lensplug.wrap(models.text_model(name), None, engine=engine)
    tokens = models.text_tokens(14)
    for mask in (torch.ones_like(tokens), torch.ones_like(tokens).index_fill(1, torch.tensor([0, 1]), 0)):
        inputs = lens.encode({"input_ids": tokens, "attention_mask": mask})
        compared(lens, inputs, [[], *(_moved(each, 2) for each in every_kind(3)[1:])])


def _moved(knockouts, by):
    """Behind padding of so many positions."""
    return [
        Knockout([key + by for key in edit.from_], edit.to, layers=edit.layers, heads=edit.heads) for edit in knockouts
    ]


@pytest.mark.parametrize("family", ["qwen2-vl", "gemma3"])
def test_cores_that_are_given_more(family):
    """Positions of three parts; and masks under which an image sees itself whole, where all is run again."""
    lens = beside.wrapped(family)
    _, prompts = beside.FAMILIES[family]
    inputs = lens.encode(prompts(9, 12))
    for example in (inputs[0:1], inputs[1:2]):
        variants = [[], *([Knockout("image", "last", layers=layer)] for layer in range(3))]
        variants += [[Knockout("image", "text", layers=1)], [Knockout("image", "last", layers=[])]]
        compared(lens, example, variants)


@pytest.mark.parametrize("engine", ENGINES)
def test_against_hooks_on_the_scores(engine):
    """Minus infinity written by a hook, in each layer."""
    lens = lensplug.wrap(models.text_model("llama"), None, engine=engine)
    inputs = lens.encode({"input_ids": models.text_tokens(12), "attention_mask": torch.ones(1, 12).long()})
    rows = [9, 11]
    variants = [[Knockout([1, 4], [6, 9, 11], layers=layer)] for layer in range(3)]
    found = under_each(lens, inputs, variants, rows, lambda logits: logits[:, 0])

    def cut(scores, hook):
        scores[:, :, [[6], [9], [11]], [1, 4]] = -torch.inf
        return scores

    for layer in range(3):
        logits = lens.run_with_hooks(inputs, fwd_hooks=[(("attn_scores", layer), cut)])
        assert models.relative_difference(found[layer], logits[0, rows]) < 1e-5


def test_other_edits_and_hooks_act_too():
    lens = lensplug.wrap(models.text_model("llama"), None)
    inputs = lens.encode({"input_ids": models.text_tokens(12), "attention_mask": torch.ones(1, 12).long()})
    plain = under_each(lens, inputs, [[]], [11])
    with lens.intervene(Scale([(0, 1)], 3.0, positions=[2, -1])):
        compared(lens, inputs, every_kind(3))
        edited = under_each(lens, inputs, [[]], [11])
    with lens.hooks([(("resid_post", 0), lambda resid, hook: resid * 0.5)]):
        compared(lens, inputs, every_kind(3))
        hooked = under_each(lens, inputs, [[]], [11])
    assert not torch.allclose(plain, edited) and not torch.allclose(plain, hooked)
    assert torch.equal(plain, under_each(lens, inputs, [[]], [11]))


def test_the_model_is_as_before_also_when_reading_fails():
    lens = lensplug.wrap(models.text_model("qwen2"), None)
    inputs = lens.encode({"input_ids": models.text_tokens(12), "attention_mask": torch.ones(1, 12).long()})
    before = models.snapshot(lens.model)
    with pytest.raises(ZeroDivisionError):
        under_each(lens, inputs, every_kind(3), [11], lambda logits: logits / (1 // 0))
    assert models.snapshot(lens.model) == before


def test_several_examples_at_once():
    """Each copy has all of them, padded as they are; where a knockout begins differs by example."""
    lens = lensplug.wrap(models.text_model("llama"), None)
    mask = torch.ones(2, 12).long()
    mask[0, :3] = 0
    inputs = lens.encode({"input_ids": models.text_tokens(12, 2), "attention_mask": mask})
    where = torch.zeros(2, 12, dtype=torch.bool)
    where[0, 6], where[1, 8] = True, True
    variants = [[], [Knockout([4, 5], "last", layers=1)], [Knockout([3, 4], where, layers=[0, 2])]]
    rows = torch.tensor([[11, 8], [10, 11]])
    with lens.edited_runs(inputs, rows) as runs:
        found = runs.under_each(variants, lambda logits: logits)
    for copy, knockouts in zip(found, variants, strict=True):
        with lens.intervene(*knockouts):
            assert models.relative_difference(copy, lens.logits_at(inputs, rows)) < 1e-5
    assert min(models.largest_difference(copy, found[0]) for copy in found[1:]) > 1e-2


def test_many_are_run_in_few_passes_of_the_positions_that_they_reach(monkeypatch):
    """One pass for all layers towards "last", of one position each, also behind a long prompt."""
    lens = lensplug.wrap(models.text_model("llama"), None)
    inputs = lens.encode({"input_ids": models.text_tokens(40), "attention_mask": torch.ones(1, 40).long()})
    passes: list[int] = []
    sizes: list[tuple[int, ...]] = []
    linear = torch.nn.functional.linear

    def noted(x, *weights):
        sizes.append(tuple(x.shape[:2]))
        return linear(x, *weights)

    monkeypatch.setattr(torch.nn.functional, "linear", noted)
    with lens.edited_runs(inputs, torch.tensor([[39]])) as runs:
        sizes.clear()
        runs.under_each(
            [[Knockout([key], "last", layers=layer)] for layer in range(3) for key in range(20)],
            last_logits,
            done=passes.append,
        )
    assert passes == [60]
    assert {size[1] for size in sizes if size[0] == 60} == {1}
    assert {size for size in sizes if size[0] != 60} <= {(1, 39), (1, 40)}, "keys and values of what is shared, once"


def test_refused():
    lens = lensplug.wrap(models.text_model("llama"), None)
    inputs = lens.encode({"input_ids": models.text_tokens(12), "attention_mask": torch.ones(1, 12).long()})
    with lens.edited_runs(inputs, torch.tensor([[11]])) as runs:
        with pytest.raises(lensplug.LensplugError, match="no variants"):
            runs.under_each([], last_logits)
        for edit in (Knockout([5], [2]), Knockout([5], "generated")):
            with pytest.raises(lensplug.LensplugError, match="would change nothing"):
                runs.under_each([[edit]], last_logits)
