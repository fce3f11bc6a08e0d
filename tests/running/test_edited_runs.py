"""Edited runs, batched and begun at a layer, against the same hooks in whole runs, one at a time."""

from __future__ import annotations

import pytest
import torch
from support.models import snapshot, three_prompts

import lensplug
from lensplug import LensplugError
from lensplug.interventions import Ablate, Knockout

FACTORS = (0.0, 0.5, 2.0, -1.0, 3.0)


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


@pytest.fixture(scope="module")
def inputs(lens):
    return three_prompts(lens)


def scaled(stream, factor, position=-2):
    changed = stream.clone()
    changed[:, position] = factor * stream[:, position]
    return changed


def last_two(inputs):
    return torch.arange(inputs.shape[1] - 2, inputs.shape[1]).expand(len(inputs), -1)


@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_mlp_out", "attn.hook_z"])
@pytest.mark.parametrize("layer", [0, 1, 5])
def test_copies_are_run_as_each_would_be(lens, inputs, layer, hook):
    name, rows = f"blocks.{layer}.{hook}", last_two(inputs)

    def each(stream, hook):
        copies = stream.view(len(FACTORS), len(inputs), *stream.shape[1:])
        return torch.cat([scaled(copy, factor) for copy, factor in zip(copies, FACTORS, strict=True)])

    before = snapshot(lens.model)
    with lens.edited_runs(inputs, rows) as runs:
        assert runs.batch >= 1
        found = runs.logits(len(FACTORS), [(name, each)], from_layer=layer)
    assert snapshot(lens.model) == before
    assert found.shape == (len(FACTORS), len(inputs), 2, lens.model.cfg.d_vocab_out)
    for copy, factor in zip(found, FACTORS, strict=True):
        with torch.no_grad():
            whole = lens.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook, by=factor: scaled(x, by))])
        torch.testing.assert_close(copy, whole[:, -2:], atol=1e-4, rtol=0)
    assert float((found[0] - found[2]).abs().max()) > 0.1, "this test can fail"


def test_without_an_edit_they_are_the_prompt(lens, inputs):
    logits, _ = lens.run_with_cache(inputs, names_filter=[])
    attended = inputs.attention_mask.bool()
    with lens.edited_runs(inputs) as runs:  # all rows, by whole patterns
        torch.testing.assert_close(runs.unedited[attended], logits[attended], atol=1e-5, rtol=0)
        for layer in (0, 3):
            for copy in runs.logits(2, from_layer=layer):
                torch.testing.assert_close(copy[attended], logits[attended], atol=1e-4, rtol=0)


def test_hooks_that_a_user_left_act_once(lens, inputs):
    """Also in the block that a run begins at: what enters it is kept before they see it."""
    rows = last_two(inputs)
    with lens.hooks([("resid_pre", lambda stream, hook: 1.5 * stream)]):
        with lens.edited_runs(inputs, rows) as runs:
            found = runs.logits(1, from_layer=2)[0]
            torch.testing.assert_close(found, runs.unedited, atol=1e-5, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(found, lens.model(inputs)[:, -2:], atol=1e-4, rtol=0)


def test_under_edits_that_are_in_force_runs_are_whole(lens, inputs):
    name, rows = "blocks.4.hook_resid_pre", last_two(inputs)
    hook = (name, lambda stream, hook: scaled(stream, 2.0))
    with lens.intervene(Ablate(heads=[(1, 2)])):
        with lens.edited_runs(inputs, rows, batch=8) as runs:
            assert runs.batch == 1
            found = runs.logits(1, [hook], from_layer=4)[0]
        expected = lens.run_with_hooks(inputs, fwd_hooks=[hook])[:, -2:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_an_edit_of_each_copy(lens, inputs):
    """What a sweep of knockouts does: masks of the copies, and layers from the first that is run."""
    one, layer = inputs[:1], 3
    rows = last_two(one)
    image = one.modality.mask("image")
    keys = torch.cat([image & (torch.arange(image.shape[1]) % 2 == half) for half in (0, 1)])
    with lens.edited_runs(one, rows) as runs:
        with lens.intervene(Knockout(from_=keys, to="last", layers=range(layer, 6))):
            found = runs.logits(2, from_layer=layer)
    for copy, half in zip(found, keys, strict=True):
        with lens.intervene(Knockout(from_=half[None], to="last", layers=range(layer, 6))):
            expected = lens.logits_at(one, rows)
        torch.testing.assert_close(copy, expected, atol=1e-4, rtol=0)
    assert float((found[0] - found[1]).abs().max()) > 1e-3


def test_gradients(lens, inputs):
    rows, layer = last_two(inputs), 2
    leaves = []

    def leaf(stream, hook):
        leaves.append(stream.detach().requires_grad_())
        return leaves[-1]

    trainable = [parameter.requires_grad for parameter in lens.model.parameters()]
    with lens.edited_runs(inputs, rows, gradients=True) as runs:
        logits = runs.logits(2, [(f"blocks.{layer}.hook_resid_pre", leaf)], from_layer=layer)
        found = torch.autograd.grad(logits[..., 5].sum(), leaves)[0]
        assert not any(parameter.requires_grad for parameter in lens.model.parameters())
    assert [parameter.requires_grad for parameter in lens.model.parameters()] == trainable
    name = f"blocks.{layer}.hook_resid_pre"
    _, _, grads = lens.run_with_gradients(inputs, target=lambda logits: logits[:, -2:, 5].sum(), names_filter=name)
    for copy in found.view(2, *grads[name].shape):
        torch.testing.assert_close(copy, grads[name], atol=1e-4, rtol=1e-3)


def test_a_batch_is_at_least_one_and_fits(lens, inputs, monkeypatch):
    with pytest.raises(LensplugError, match="batch is 0"), lens.edited_runs(inputs, batch=0):
        pass
    with lens.edited_runs(inputs[:1], last_two(inputs[:1])) as runs:
        roomy = runs.batch
    monkeypatch.setattr("lensplug.running.memory_estimate.free_bytes", lambda device: 2**22)
    with lens.edited_runs(inputs[:1], last_two(inputs[:1])) as runs:
        assert 1 <= runs.batch < roomy
