"""Gradients of the wrapped core are Hugging Face's own, belong to the layer they are named after, and leave nothing."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from support.built import HOOKED, ONLY_HOOKED
from support.models import (
    QUESTION,
    llava_onevision,
    relative_difference,
    scene,
    snapshot,
    text_model,
    wrapped_logits,
)
from transformer_lens.utilities import get_act_name
from transformers.models.qwen2 import modeling_qwen2

import lensplug
from lensplug import LensplugError, analysis
from lensplug.positions.tokens import single_token

TOKEN = 7
pattern = partial(get_act_name, "pattern")
pytestmark = pytest.mark.usefixtures("trainable_as_before")


@pytest.fixture(scope="module")
def eager():
    """The same model, with Hugging Face's own eager attention: it returns its patterns."""
    model, _ = llava_onevision()
    model.set_attn_implementation("eager")
    return model


def reference_gradients(model, model_inputs, tokens, at) -> list[torch.Tensor]:
    """Of the logit of each example's token at its position, with respect to Hugging Face's own attention patterns."""
    outputs = model(**model_inputs, use_cache=False, output_attentions=True)
    for attention in outputs.attentions:
        attention.retain_grad()
    examples = torch.arange(len(outputs.logits))
    outputs.logits[examples, at, tokens].sum().backward()
    model.zero_grad(set_to_none=True)
    return [attention.grad for attention in outputs.attentions]


@pytest.mark.parametrize("position", [-1, -6])
def test_are_those_of_hugging_faces_eager_attention(lens, inputs, eager, position, unchanged):
    logits, cache, grads = lens.run_with_gradients(inputs, target=TOKEN, position=position)
    at = inputs.tokens.shape[1] + position
    expected = reference_gradients(eager, inputs.model_inputs, TOKEN, at)
    assert set(grads.keys()) == set(cache.keys()) == {pattern(layer) for layer in range(6)}
    for layer, gradient in enumerate(expected):
        assert relative_difference(grads[pattern(layer)], gradient) < 1e-4
        assert relative_difference(grads[pattern(layer)], expected[5 - layer]) > 0.1, "this test can fail"
    assert torch.equal(logits, wrapped_logits(lens, inputs))
    plain = lens.run_with_cache(inputs, names_filter=analysis.gradient_rollout.needs)[1]
    assert all(torch.equal(cache[name], plain[name]) for name in plain.keys())


def test_of_a_padded_batch_are_those_of_hugging_face(lens, batch, eager, unchanged):
    ids = torch.tensor([TOKEN, 11, 42])
    grads = lens.run_with_gradients(batch, target=ids)[2]
    expected = reference_gradients(eager, batch.model_inputs, ids, batch.tokens.shape[1] - 1)  # padded at the left
    attended = batch.attention_mask.bool()
    both = (attended[:, :, None] & attended[:, None, :])[:, None].expand(-1, 6, -1, -1)
    for layer, gradient in enumerate(expected):
        assert relative_difference(grads[pattern(layer)][both], gradient[both]) < 1e-4
    assert grads.attention_mask is batch.attention_mask


class InDouble:
    """torch for a module of Hugging Face, which computes softmax and norms in fp32 whatever the model's dtype."""

    def __getattr__(self, name):
        return torch.float64 if name == "float32" else getattr(torch, name)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("target", ["Red", ("Red", "Blue")])
def test_of_the_trained_model_are_those_of_hugging_face(target, dtype, tolerance, monkeypatch):
    """Of the largest gradient of each layer; measured: 3e-6 and 2e-15."""
    lens = lensplug.tiny.llava_onevision(dtype=dtype)
    if dtype == "float64" and lens.engine == "bridge":
        pytest.skip("a bridge computes its softmax in fp32 whatever the model's dtype")
    inputs = lens.prepare(QUESTION, images=[scene(96, 96, 2)])
    grads = lens.run_with_gradients(inputs, target=target)[2]
    model = copy.deepcopy(lens.hf_model)
    model.set_attn_implementation("eager")
    if dtype == "float64":
        monkeypatch.setattr(modeling_qwen2, "torch", InDouble())
    hidden = model.get_decoder()(inputs_embeds=inputs.embeds, use_cache=False, output_attentions=True)
    logits = model.get_output_embeddings()(hidden.last_hidden_state)[0, -1]
    one, *other = [single_token(word, lens.tokenizer) for word in ([target] if isinstance(target, str) else target)]
    expected = torch.autograd.grad(logits[one] - logits[other].sum(), hidden.attentions)
    for layer, gradient in enumerate(expected):
        assert relative_difference(grads[pattern(layer)], gradient) < tolerance
        assert relative_difference(grads[pattern(layer)], expected[5 - layer]) > 0.1, "this test can fail"


@pytest.mark.parametrize("side", ["left", "right"])
def test_of_an_example_of_a_batch_are_those_of_it_alone(lens, side, unchanged):
    questions = [QUESTION, "What is the shape? " + QUESTION]
    images = [[scene(48, 48, 1)], [scene(80, 64, 2)]]
    texts = ["<image> " + question for question in questions]
    batch = lens.encode(lens.processor(text=texts, images=images, padding=True, padding_side=side, return_tensors="pt"))
    assert bool(batch.attention_mask[0, 0 if side == "right" else -1]) and not bool(batch.attention_mask.all())
    _, cache, grads = lens.run_with_gradients(batch, target=torch.tensor([TOKEN, 11]))
    rollout = analysis.gradient_rollout(cache, grads, rows=-1)
    for example, token in enumerate((TOKEN, 11)):
        single = lens.prepare(texts[example], images=images[example], chat_template=False)
        _, own_cache, own = lens.run_with_gradients(single, target=token)
        real = batch.attention_mask[example].bool()
        for name in own.keys():
            inside = grads[name][example][:, real][:, :, real]
            assert relative_difference(inside, own[name][0]) < 1e-4
            rest = grads[name][example].clone()
            rest[:, real] = 0
            assert not bool(rest.any()), "padding gives nothing to the logit"
        alone = analysis.gradient_rollout(own_cache, own, rows=-1).relevance[0, 0]
        assert relative_difference(rollout.relevance[example, 0, real], alone) < 1e-4
        assert not bool(rollout.relevance[example, 0, ~real].any())


@pytest.mark.skipif(not HOOKED, reason=ONLY_HOOKED)
def test_are_finite_differences_of_the_logit(picture):
    """In double precision, which a bridge's softmax is not."""
    model, processor = llava_onevision()
    lens = lensplug.wrap(model.double(), processor, engine="hooked_transformer")
    inputs = lens.prepare(QUESTION, images=[picture])
    grads = lens.run_with_gradients(inputs, target="Red")[2]
    token, step = single_token("Red", lens.tokenizer), 1e-5

    def logit(layer, at, change):
        def nudge(value, hook):
            value = value.clone()
            value[0][tuple(at)] += change
            return value

        with torch.no_grad():
            return float(lens.run_with_hooks(inputs, fwd_hooks=[(pattern(layer), nudge)])[0, -1, token])

    for layer in range(6):
        gradient = grads[pattern(layer)][0]
        assert gradient.dtype == torch.float64
        largest = [int(i) for i in torch.unravel_index(gradient.abs().argmax(), gradient.shape)]
        for at in (largest, [2, -1, 3], [1, 8, 8]):
            found = (logit(layer, at, step) - logit(layer, at, -step)) / (2 * step)
            assert found == pytest.approx(float(gradient[tuple(at)]), rel=1e-5, abs=1e-7)


def test_of_any_hook(lens, inputs, unchanged):
    """The last residual's gradient, through the final norm, is Hugging Face's; the embedding is a leaf."""
    names = ["hook_embed", "blocks.2.hook_resid_post", "blocks.5.hook_resid_post"]
    _, cache, grads = lens.run_with_gradients(inputs, target=TOKEN, names_filter=names)
    assert set(grads.keys()) == set(names) == set(cache.keys())
    embeds = inputs.embeds.clone().requires_grad_()
    hidden = lens.core.decoder(inputs_embeds=embeds).last_hidden_state
    (expected,) = torch.autograd.grad(lens.core.head(hidden)[0, -1, TOKEN], embeds)
    assert relative_difference(grads["hook_embed"], expected) < 1e-4
    residual = cache["blocks.5.hook_resid_post"].clone().requires_grad_()
    logit = lens.core.head(lens.core.decoder.norm(residual))[0, -1, TOKEN]
    assert relative_difference(grads[names[2]], torch.autograd.grad(logit, residual)[0]) < 1e-4
    every = lens.run_with_gradients(inputs, target=TOKEN, names_filter=lambda name: True)
    assert set(every[2].keys()) == set(every[1].keys()) == set(lens.run_with_cache(inputs)[1].keys())
    assert all(every[2][name].shape == every[1][name].shape for name in every[1].keys())
    one = lens.run_with_gradients(inputs, target=TOKEN, names_filter=names[1])[2]
    assert list(one.keys()) == names[1:2] and torch.equal(one[names[1]], grads[names[1]])


def test_what_the_logit_does_not_depend_on_has_a_gradient_of_zero(lens, inputs, unchanged):
    """Also where a hook of the user has put a constant in the place of an activation."""
    grads = lens.run_with_gradients(inputs, target=TOKEN, position=4)[2]
    assert not bool(grads[pattern(2)][:, :, 5:].any()) and bool(grads[pattern(2)][:, :, :5].any())

    def constant(value, hook):
        return torch.full_like(value, 0.01).detach()

    with lens.model.hooks(fwd_hooks=[(pattern(0), constant), ("blocks.4.hook_resid_post", constant)]):
        _, cache, cut = lens.run_with_gradients(inputs, target=TOKEN)
    assert bool((cache[pattern(0)] == 0.01).all())
    assert not bool(cut[pattern(0)].any() or cut[pattern(4)].any()) and bool(cut[pattern(5)].any())


def test_a_users_edit_is_what_the_gradient_is_of(lens, inputs, unchanged):
    """Twice the value that leaves a hook gives the gradient at what left it, not at what came."""

    def doubled(value, hook):
        return 2 * value

    with lens.model.hooks(fwd_hooks=[("blocks.5.hook_resid_post", doubled)]):
        _, cache, grads = lens.run_with_gradients(inputs, target=TOKEN, names_filter="blocks.5.hook_resid_post")
    residual = cache["blocks.5.hook_resid_post"].clone().requires_grad_()
    logit = lens.core.head(lens.core.decoder.norm(residual))[0, -1, TOKEN]
    assert relative_difference(grads["blocks.5.hook_resid_post"], torch.autograd.grad(logit, residual)[0]) < 1e-4


def test_results_are_detached_and_nothing_else_has_a_gradient(lens, inputs, unchanged):
    parameters = [*lens.model.named_parameters(), *lens.hf_model.named_parameters()]
    trainable = [parameter.requires_grad for _, parameter in parameters]
    assert any(trainable) and all(parameter.grad is None for _, parameter in parameters)
    logits, cache, grads = lens.run_with_gradients(inputs, target=TOKEN)
    for tensor in (logits, *cache.values(), *grads.values()):
        assert not tensor.requires_grad and tensor.grad_fn is None
    assert not inputs.embeds.requires_grad and inputs.embeds.grad is None
    assert [parameter.requires_grad for _, parameter in parameters] == trainable
    assert all(parameter.grad is None for _, parameter in parameters)


def test_parameters_are_frozen_during_the_pass_only(lens, inputs):
    """A parameter that was frozen before stays frozen, one that was not is so again."""
    parameters = list(lens.model.parameters())
    frozen = parameters[3]
    frozen.requires_grad_(False)
    before = [parameter.requires_grad for parameter in parameters]
    during: list[bool] = []

    def look(logits):
        during.extend(parameter.requires_grad for parameter in parameters)
        return logits.sum()

    try:
        lens.run_with_gradients(inputs, target=look)
        assert len(during) == len(before) and not any(during)
        assert [parameter.requires_grad for parameter in parameters] == before and not before[3]
    finally:
        frozen.requires_grad_(True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_switched_off(lens, inputs, mode, unchanged):
    expected = lens.run_with_gradients(inputs, target=TOKEN)[2]
    with mode():
        grads = lens.run_with_gradients(inputs, target=TOKEN)[2]
        made_here = lens.run_with_gradients(lens.prepare(QUESTION, images=list(inputs.images[0])), target=TOKEN)[2]
        assert not torch.is_grad_enabled()
    for name in expected.keys():
        assert torch.equal(grads[name], expected[name]) and torch.equal(made_here[name], expected[name])


class Boom(Exception):
    pass


@pytest.mark.parametrize("where", ["target", "hook"])
def test_an_exception_passes_through_and_leaves_nothing(lens, inputs, where, unchanged):
    def boom(*_, **__):
        raise Boom

    hooks = [("blocks.2.hook_resid_post", boom)] if where == "hook" else []
    with pytest.raises(Boom), lens.model.hooks(fwd_hooks=hooks):
        lens.run_with_gradients(inputs, target=boom if where == "target" else TOKEN)
    assert all(not point.fwd_hooks and not point.bwd_hooks for point in lens.model.hook_dict.values())


def test_hooks_of_the_user_stay(lens, inputs):
    before = snapshot(lens.model)
    seen = []
    point = lens.model.hook_dict[pattern(1)]
    point.add_hook(lambda value, hook: seen.append(hook.name))
    try:
        lens.run_with_gradients(inputs, target=TOKEN)
        assert seen == [pattern(1)] and len(point.fwd_hooks) == 1
    finally:
        point.remove_hooks()
    assert snapshot(lens.model) == before


@pytest.mark.parametrize("layer", [0, 2])
def test_overflow_in_half_precision_is_refused(layer):
    """HookedTransformer turns the NaN of an overflowed score into a row of zeros, which would look like a finding."""
    model = text_model("qwen2").half()
    lens = lensplug.wrap(model, check=False)
    tokens = torch.arange(3, 15)[None]
    inputs = lens.encode({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    assert all(value.isfinite().all() for value in lens.run_with_gradients(inputs, target=TOKEN)[2].values())
    with torch.no_grad():
        attention = model.model.layers[layer].self_attn
        attention.q_proj.bias.fill_(200.0)
        attention.k_proj.bias.fill_(200.0)
    overflowed = lens.model.run_with_cache(inputs)[1][pattern(layer)]
    if lens.engine == "hooked_transformer":
        assert not bool(overflowed.isnan().any()) and float(overflowed.sum()) < 12 * 4
    else:
        assert bool(overflowed.isnan().any())
    with pytest.raises(LensplugError, match="holds NaN or infinity.*float16.*use bfloat16 or float32"):
        lens.run_with_gradients(inputs, target=TOKEN)


def test_rollout_of_the_lens_finds_the_answers_row(lens, inputs, unchanged):
    _, cache, grads = lens.run_with_gradients(inputs, target="Red")
    row = analysis.gradient_rollout(cache, grads, rows=-1)
    full = analysis.gradient_rollout(cache, grads)
    torch.testing.assert_close(row.values[:, 0], full.values[:, -1], rtol=1e-5, atol=1e-6)
    assert row.relevance.shape == (1, 1, inputs.tokens.shape[1]) and bool((row.relevance >= 0).all())
    assert float(row.relevance[0, 0][inputs.modality.mask("image")[0]].sum()) > 0


def test_folded_weights_give_the_centred_logit_and_shift_each_row_of_a_pattern(lens, folded_lens, inputs):
    """As `run_with_gradients` says: the value biases are no longer carried by the pattern."""

    def centred(logits):
        return logits[0, -1, TOKEN] - logits[0, -1].mean()

    expected = lens.run_with_gradients(inputs, target=centred)[2]
    found = folded_lens.run_with_gradients(inputs, target=TOKEN)[2]
    for name in expected.keys():
        shift = (expected[name] - found[name]).mean(dim=-1, keepdim=True)
        assert relative_difference(found[name] + shift, expected[name]) < 1e-3
        assert float(shift.abs().max()) > 0.01 * float(expected[name].abs().max())
