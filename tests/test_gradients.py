"""Gradients of the wrapped core are Hugging Face's own, belong to the layer they are named after, and leave nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from built import HOOKED, ONLY_HOOKED
from models import QUESTION, largest_difference, llava_onevision, scene, snapshot, text_model, wrapped_logits
from transformers.models.qwen2 import modeling_qwen2

import lensplug
from lensplug import LensplugError, analysis
from lensplug.tokens import single_token

TOKEN = 7


def pattern(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_pattern"


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a fraction of the largest value expected."""
    return largest_difference(found, expected) / float(expected.abs().max())


@pytest.fixture(autouse=True)
def trainable_as_before(lens):
    """Every test ends with the parameters trainable that were so, and with no gradient on any."""
    before = [parameter.requires_grad for parameter in lens.model.parameters()]
    assert any(before), "an earlier test has left them frozen"
    yield
    assert [parameter.requires_grad for parameter in lens.model.parameters()] == before
    assert all(parameter.grad is None for parameter in lens.model.parameters())


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
            value[(0, *at)] += change
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
    before, during = [parameter.requires_grad for parameter in parameters], []

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names_filter": "blocks.0.attn.hook_patern"}, "is no hook.*Did you mean 'blocks.0.attn.hook_pattern'"),
        ({"names_filter": ["hook_embed", "zzz"]}, "'zzz' is no hook of this model"),
        ({"names_filter": lambda name: False}, "names_filter keeps no hook"),
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
    cache = lens.run_with_cache(inputs)[1]
    overflowed = cache[pattern(layer)]
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


@pytest.mark.parametrize("block_bytes", [1, 100_000, 2**26])
@pytest.mark.parametrize("contributions", ["positive", "negative", "signed"])
def test_what_is_kept_block_by_block_gives_the_same_rollout(lens, batch, contributions, block_bytes, monkeypatch):
    monkeypatch.setattr("lensplug.patches.pattern_blocks.BLOCK_BYTES", block_bytes)
    ids = torch.tensor([TOKEN, 11, 42])
    logits, cache, grads = lens.run_with_gradients(batch, target=ids)
    keep = ["cam", "cam_negative"] if contributions == "signed" else "cam" if contributions == "positive" else None
    kept_logits, kept, none = lens.run_with_gradients(batch, target=ids, keep=keep or "cam_negative")
    assert kept_logits.shape == (3, 1, lens.model.cfg.d_vocab) and not none.cache_dict
    torch.testing.assert_close(kept_logits[:, 0], logits[:, -1], atol=1e-3, rtol=1e-4)  # left padded
    assert all(name.rpartition("_")[0].endswith("cam") for name in kept)
    for options in ({}, {"rows": -1}, {"normalize": True}):
        if contributions == "signed" and "normalize" in options:
            continue
        found, expected = (
            analysis.gradient_rollout(*one, contributions=contributions, **options)
            for one in ((kept, none), (cache, grads))
        )
        assert relative_difference(found.relevance, expected.relevance) < 1e-4
        assert found.provenance.convention == expected.provenance.convention
    other = analysis.gradient_rollout(cache, grads, contributions="negative" if keep else "positive")
    assert relative_difference(found.relevance, other.relevance) > 0.1 or len(found.rows[0]) != len(other.rows[0])


def test_kept_activations_and_a_function_go_with_what_is_kept(lens, inputs):
    name = "blocks.2.hook_resid_post"
    target = lambda logits: logits[0, -1, TOKEN] - logits[0, -2, TOKEN]  # noqa: E731
    logits, cache, grads = lens.run_with_gradients(inputs, target=target, names_filter=[name, pattern(0)])
    _, kept, kept_grads = lens.run_with_gradients(inputs, target=target, names_filter=name, keep="cam")
    assert relative_difference(kept[name], cache[name]) < 1e-4
    assert relative_difference(kept_grads[name], grads[name]) < 1e-4
    expected = (cache[pattern(0)] * grads[pattern(0)]).clamp(min=0).mean(dim=1)
    assert relative_difference(kept["blocks.0.attn.cam_positive"], expected) < 1e-4


def test_what_does_not_go_with_what_is_kept_is_refused(lens, inputs):
    with pytest.raises(LensplugError, match="with keep, patterns and scores are not kept"):
        lens.run_with_gradients(inputs, target=TOKEN, names_filter=pattern(0), keep="cam")
    with pytest.raises(LensplugError, match="keep has 'rollout', expected 'cam', 'cam_negative'"):
        lens.run_with_gradients(inputs, target=TOKEN, keep="rollout")
    _, kept, none = lens.run_with_gradients(inputs, target=TOKEN, keep="cam")
    with pytest.raises(LensplugError, match=r"reads what keep=\['cam', 'cam_negative'\] keeps"):
        analysis.gradient_rollout(kept, none, contributions="signed")
    with pytest.raises(LensplugError, match="contributions is 'all', expected one of 'positive'"):
        analysis.gradient_rollout(kept, none, contributions="all")
    with pytest.raises(LensplugError, match="leave normalize out"):
        analysis.gradient_rollout(kept, none, contributions="signed", normalize=True)


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
