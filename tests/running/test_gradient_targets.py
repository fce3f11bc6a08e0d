"""What a gradient may be of: words, ids, differences, answers, functions; and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.models import relative_difference
from transformer_lens.utilities import get_act_name

from lensplug import LensplugError
from lensplug.positions.tokens import single_token

TOKEN = 7
pattern = partial(get_act_name, "pattern")
pytestmark = pytest.mark.usefixtures("trainable_as_before")


def test_targets_are_words_ids_tensors_and_functions(lens, batch, unchanged):
    token = single_token("Red", lens.tokenizer)

    def gradients(target, **options):
        return lens.run_with_gradients(batch, target=target, names_filter=[pattern(3)], **options)[2][pattern(3)]

    expected = gradients("Red")
    assert float(expected.abs().max()) > 1e-4
    for target in (token, torch.tensor(token), torch.tensor([token] * 3)):
        assert torch.equal(gradients(target), expected)
    assert torch.equal(gradients(lambda logits: logits[:, -1, token].sum()), expected)
    assert not torch.equal(gradients(torch.tensor([token, 5, token])), expected)
    assert not torch.equal(gradients("Red", position=-2), expected)
    difference = gradients(lambda logits: (logits[:, -1, token] - logits[:, -1, 5]).sum())
    torch.testing.assert_close(difference, expected - gradients(5), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names_filter": "blocks.0.attn.hook_patern"}, "is no hook.*Did you mean 'blocks.0.attn.hook_pattern'"),
        ({"names_filter": ["hook_embed", "zzz"]}, "'zzz' is no hook of this model"),
        ({"names_filter": lambda name: False}, "names_filter matches no hook"),
        ({"names_filter": "blocks.0.attn.hook_result"}, r"fires only after lens.model.set_use_attn_result\(True\)"),
        ({"target": "Zebra!"}, r"'Zebra!' is \d tokens .*expected one"),
        ({"target": 100_000}, r"target ids must be whole numbers from 0 to \d+, got 100000"),
        ({"target": -1}, "target ids must be whole numbers"),
        ({"target": torch.tensor([0.5])}, "target ids must be whole numbers"),
        ({"target": torch.tensor([True])}, "target ids must be whole numbers"),
        ({"target": torch.tensor([1, 2])}, r"target has the shape \[2\], expected one id or \[1\]"),
        ({"target": torch.tensor([[1]])}, r"target has the shape \[1, 1\]"),
        ({"target": lambda logits: logits[:, -1]}, r"returned a tensor of shape \[1, .*expected one number"),
        ({"target": lambda logits: float(logits.detach().sum())}, "returned a float, expected one number"),
        ({"target": lambda logits: logits.argmax()}, "returned a tensor.*expected one number"),
        ({"target": lambda logits: None}, "returned a NoneType"),
        ({"target": lambda logits: logits.detach().sum()}, "has no gradient: compute it from the logits"),
        ({"position": 500}, "position 500 is out of range"),
        ({"position": -500}, "position -500 is out of range"),
    ],
)
def test_what_cannot_be_meant_is_refused(lens, inputs, options, message, unchanged):
    with pytest.raises(LensplugError, match=message):
        lens.run_with_gradients(inputs, **{"target": TOKEN, **options})


@pytest.mark.parametrize("keep", [None, "cam"])
def test_the_difference_of_two_logits(lens, batch, keep):
    ids, others = torch.tensor([TOKEN, 11, 42]), single_token("Red", lens.tokenizer)

    def difference(logits):
        return sum(logits[example, -3, token] - logits[example, -3, others] for example, token in enumerate(ids))

    found, expected = (
        lens.run_with_gradients(batch, target=target, position=-3, keep=keep) for target in ((ids, "Red"), difference)
    )
    name = "blocks.2.attn.cam_positive" if keep else pattern(2)
    found, expected = ((one[1] if keep else one[2])[name] for one in (found, expected))
    assert relative_difference(found, expected) < 1e-4
    alone = lens.run_with_gradients(batch, target=ids, position=-3, keep=keep)[1 if keep else 2][name]
    assert relative_difference(alone, expected) > 0.01, "this test can fail"


@pytest.mark.parametrize("keep", [None, "cam"])
def test_the_sum_over_an_answer(lens, batch, keep, monkeypatch):
    stop = int(lens.generate(batch, max_new_tokens=5).tokens[0, 1])
    monkeypatch.setattr(lens.hf_model.generation_config, "eos_token_id", stop)
    answer = lens.generate(batch, max_new_tokens=5)
    written = answer.inputs.modality.mask("generated")[:, -5:]
    assert not bool(written.all()), "an answer ends early"

    def total(logits):
        own = logits[:, -6:-1].gather(2, answer.tokens[:, :, None])[..., 0]
        return (own * written).sum()

    logits, cache, grads = lens.run_with_gradients(answer.inputs, target=answer, keep=keep)
    _, expected_cache, expected = lens.run_with_gradients(answer.inputs, target=total, keep=keep)
    name = "blocks.2.attn.cam_positive" if keep else pattern(2)
    found, expected = (grads[name], expected[name]) if not keep else (cache[name], expected_cache[name])
    assert relative_difference(found, expected) < 1e-4
    assert logits.shape[1] == (5 if keep else answer.inputs.tokens.shape[1])
    with pytest.raises(LensplugError, match="the target is an answer to other inputs: run on answer.inputs"):
        lens.run_with_gradients(batch, target=answer)
