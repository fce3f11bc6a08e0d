"""BridgeDeepstack: image features that Qwen3-VL adds between layers are a term of the stream, in every path."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.metadata import version

import pytest
import torch
from support.beside import given_of, qwen3_vl, qwen_prompts, wrapped
from support.models import largest_difference, reference_logits, scene, snapshot
from support.qwen3_vl_media import frames, wrapped_with_processor

import lensplug
from lensplug import LensplugError, analysis, engines
from lensplug.inputs.edited_inputs import in_place
from lensplug.patches.both.from_layer import FromLayer
from lensplug.patches.bridge.deepstack import BridgeDeepstack

FAMILIES = ["qwen3-vl", "qwen3-vl-moe"]
TERMS = ["0_deepstack", "1_deepstack"]


@pytest.fixture(params=FAMILIES)
def lens(request):
    return wrapped(request.param)


@pytest.fixture
def given(lens):
    return given_of(FAMILIES[lens.model.cfg.num_experts is not None])


@pytest.fixture
def inputs(lens, given):
    return lens.encode(given)


def streams_of(hf_model, given):
    """What enters each layer, and the last norm; and what each layer returns."""
    entering, leaving = [], []
    decoder = hf_model.get_decoder()
    handles = [
        module.register_forward_pre_hook(lambda _, args, kwargs: entering.append(args[0]), with_kwargs=True)
        for module in (*decoder.layers, decoder.norm)
    ]
    handles += [layer.register_forward_hook(lambda _, args, output: leaving.append(output)) for layer in decoder.layers]
    with torch.no_grad():
        hf_model(**given, use_cache=False)
    for handle in handles:
        handle.remove()
    return entering, leaving


def test_every_residual_stream_is_hugging_faces(lens, given, inputs):
    real = inputs.attention_mask.bool()
    entering, leaving = streams_of(lens.hf_model, given)
    _, cache = lens.run_with_cache(inputs)
    for layer in range(3):
        close = partial(torch.testing.assert_close, atol=3e-5, rtol=1e-5)
        close(cache["resid_pre", layer][real], entering[layer][real])
        close(cache["resid_post", layer][real], entering[layer + 1][real])
        added = cache["deepstack", layer] if layer < 2 else 0.0
        close((cache["resid_post", layer] - added)[real], leaving[layer][real])
    image = inputs.modality.mask("image")
    for layer in range(2):
        assert float(cache["deepstack", layer][image].norm(dim=-1).min()) > 1
        assert not bool(cache["deepstack", layer][~image].any())
    assert "blocks.2.hook_deepstack" not in lens.model.hook_dict


@pytest.mark.parametrize("apply_ln", [False, True])
def test_parts_sum_at_the_image(lens, inputs, apply_ln):
    """By 6 they would not, without the term."""
    _, cache = lens.run_with_cache(inputs)
    _, plain = lens.model.run_with_cache(inputs)  # TransformerLens's own cache
    real, image = inputs.attention_mask.bool(), inputs.modality.mask("image")
    expected = cache["resid_post", -1]
    if apply_ln:
        expected = cache.apply_ln_to_stack(expected[None])[0]
    for held in (cache, plain):
        parts, labels = held.decompose_resid(apply_ln=apply_ln, return_labels=True)
        assert labels[-2:] == TERMS and len(labels) == len(parts)
        torch.testing.assert_close(parts.sum(0)[real], expected[real], atol=1e-4, rtol=1e-4)
        if not apply_ln:
            assert float((parts[:-2].sum(0) - expected)[image].abs().max()) > 5
        everything, labels = held.get_full_resid_decomposition(
            expand_neurons=False, apply_ln=apply_ln, return_labels=True
        )
        assert labels[-2:] == TERMS
        torch.testing.assert_close(everything.sum(0)[real], expected[real], atol=1e-4, rtol=1e-4)
        onto = torch.randn(32, 2, generator=torch.Generator().manual_seed(3))
        projected = held.get_full_resid_decomposition(expand_neurons=False, apply_ln=apply_ln, project_output_onto=onto)
        torch.testing.assert_close(projected, everything @ onto, atol=1e-4, rtol=1e-4)
    _, labels = cache.decompose_resid(1, return_labels=True)
    assert labels[-1] == TERMS[0], "what enters the second layer has the first term alone"
    parts = cache.decompose_resid(1)
    torch.testing.assert_close(parts.sum(0)[real], cache["resid_pre", 1][real], atol=1e-4, rtol=1e-4)
    assert len(cache.decompose_resid(mode="mlp", incl_embeds=False)) == 3, "the MLPs' alone are as ever"
    accumulated = cache.accumulated_resid()
    torch.testing.assert_close(accumulated[1], cache["resid_post", 0])


def test_a_cache_without_the_term_is_refused(lens, inputs):
    _, cache = lens.run_with_cache(inputs, names_filter=lambda name: "deepstack" not in name)
    with pytest.raises(LensplugError, match="does not hold 'blocks.0.hook_deepstack'"):
        cache.decompose_resid()


def test_without_an_image_the_term_is_zero(lens):
    tokens = torch.arange(3, 33)[None]
    inputs = lens.encode({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    _, cache = lens.run_with_cache(inputs)
    assert cache["deepstack", 0].shape == inputs.embeds.shape and not bool(cache["deepstack", 0].any())
    torch.testing.assert_close(cache.decompose_resid().sum(0), cache["resid_post", -1], atol=1e-4, rtol=1e-4)
    _, of_tokens = lens.model.run_with_cache(tokens)
    torch.testing.assert_close(of_tokens["resid_post", -1], cache["resid_post", -1], atol=1e-5, rtol=1e-5)


def test_an_edit_of_the_term_is_that_of_the_features(lens, given, inputs, monkeypatch):
    decoder, decoded = lens.core.decoder, lens.core.decoder.forward

    def without(*args, deepstack_visual_embeds=None, **kwargs):
        features = [torch.zeros_like(deepstack_visual_embeds[0]), deepstack_visual_embeds[1]]
        return decoded(*args, deepstack_visual_embeds=features, **kwargs)

    whole = reference_logits(lens.hf_model, given)
    monkeypatch.setattr(decoder, "forward", without)
    expected = reference_logits(lens.hf_model, given)
    monkeypatch.undo()
    hooks = [("blocks.0.hook_deepstack", lambda added, hook: torch.zeros_like(added))]
    with torch.no_grad():
        found = lens.model.run_with_hooks(inputs, fwd_hooks=hooks)
        assert largest_difference(found, expected, inputs.attention_mask) < 1e-4
        assert largest_difference(found, whole, inputs.attention_mask) > 0.5
        rows = torch.full((2, 1), inputs.shape[1] - 1)
        with lens.logits_only(rows), lens.model.hooks(hooks):
            light = lens.model(inputs)
        torch.testing.assert_close(light[:, 0], expected[:, -1], atol=1e-4, rtol=0)


def test_light_runs_and_runs_from_a_layer(lens, inputs):
    logits, cache = lens.run_with_cache(inputs)
    needs = partial(analysis.direct_attribution, by="source")
    light, rows = lens.run_with_cache(
        inputs, needs=needs, query_positions=[-1], residual_positions=[-1], logit_positions=[-1]
    )
    torch.testing.assert_close(light[:, 0], logits[:, -1], atol=3e-5, rtol=0)
    assert rows["deepstack", 0].shape[1] == 1
    real = inputs.attention_mask.bool()
    with torch.no_grad():
        for layer in range(3):
            residual = cache["resid_pre", layer]
            with FromLayer(lens.model, layer, residual):
                torch.testing.assert_close(lens.model(inputs)[real], logits[real], atol=3e-5, rtol=0)
            with lens.edited_runs(inputs, rows=torch.full((2, 2), 29) - torch.arange(2)) as runs:
                found = runs.logits(3, from_layer=layer, from_position=3)
            torch.testing.assert_close(found, logits[None, :, [29, 28]].expand(3, -1, -1, -1), atol=3e-5, rtol=0)


def test_start_at_layer_needs_what_the_core_is_given(lens, inputs):
    logits, cache = lens.run_with_cache(inputs)
    residual, real = cache["resid_pre", 1], inputs.attention_mask.bool()
    with pytest.raises(LensplugError, match=r"start_at_layer=1, \*\*inputs.decoder_inputs"):
        lens.model(residual, start_at_layer=1)
    if version("transformer-lens") < "4":
        return  # which has no start_at_layer
    with torch.no_grad():
        found = lens.model(residual, start_at_layer=1, attention_mask=inputs.attention_mask, **inputs.decoder_inputs)
    torch.testing.assert_close(found[real], logits[real], atol=3e-5, rtol=0)


@pytest.mark.parametrize("by", ["layer", "head", "source"])
@pytest.mark.parametrize("position", [-1, 12], ids=["words", "image"])
def test_direct_attribution_has_the_term(lens, inputs, by, position):
    _, cache = lens.run_with_cache(inputs[0:1])
    result = analysis.direct_attribution(cache, (5, 9), inputs[0:1].modality, by=by, position=position)
    assert inputs.modality.names and [name for name in result.other_names if "deepstack" in name] == TERMS
    terms = result.others[0, [result.other_names.index(name) for name in TERMS]]
    assert bool((terms.abs() > 1e-2).all()) == (position == 12) and bool(terms.any()) == (position == 12)
    if by == "layer":
        direction = analysis.direct_attribution(cache, (5, 9), by="layer", position=position)
        assert direction.others.shape == result.others.shape


def test_gradients_of_embeddings_are_hugging_faces(lens, inputs):
    decoder, mask = lens.core.decoder, inputs.modality.mask("image")
    features = [of_layer[mask] for of_layer in inputs.decoder_inputs["deepstack"]]
    leaf = inputs.embeds.clone().requires_grad_()
    hidden = decoder(
        inputs_embeds=leaf, attention_mask=inputs.attention_mask, use_cache=False, visual_pos_masks=mask,
        position_ids=inputs.decoder_inputs["position_ids"], deepstack_visual_embeds=features,
    ).last_hidden_state  # fmt: skip
    (expected,) = torch.autograd.grad(lens.core.head(hidden)[:, -1, 5].sum(), leaf)
    for scope in (lambda: engines.checkpointed(lens.model), lambda: torch.enable_grad()):
        own = inputs.embeds.clone().requires_grad_()
        with scope():
            (found,) = torch.autograd.grad(lens.model(replace(inputs, embeds=own))[:, -1, 5].sum(), own)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert float(expected.abs().max()) > 0.1


def test_examples_and_first_positions(lens, inputs):
    logits = lens.model(inputs)
    real = inputs.attention_mask.bool()
    for example in range(2):
        alone = lens.model(inputs[example : example + 1])[0]
        torch.testing.assert_close(alone[real[example]], logits[example][real[example]], atol=3e-5, rtol=0)
    stop = 24  # in the midst of nothing: what a causal model computes before it does not change
    torch.testing.assert_close(
        lens.model(inputs[:, :stop])[real[:, :stop]], logits[:, :stop][real[:, :stop]], atol=3e-5, rtol=0
    )


def test_a_replaced_image_leaves_no_features(lens, inputs):
    mask = inputs.modality.mask("image")
    embeds = torch.where(mask[..., None], torch.ones_like(inputs.embeds), inputs.embeds)
    added = in_place(inputs, embeds).decoder_inputs["deepstack"]
    assert not bool(added.any()) and bool(inputs.decoder_inputs["deepstack"].any())
    embeds = inputs.embeds.clone()
    embeds[0, 12] = 0
    added = in_place(inputs, embeds).decoder_inputs["deepstack"]
    changed = (added != inputs.decoder_inputs["deepstack"]).any(dim=-1).any(dim=0)
    assert changed.nonzero().tolist() == [[0, 12]]


def test_processed_weights_say_the_same():
    lens, given = wrapped("qwen3-vl"), given_of("qwen3-vl")
    processed = lensplug.wrap(lens.hf_model, process_weights=True)
    inputs = lens.encode(given)
    with torch.no_grad():
        ours, theirs = (each.model(inputs).log_softmax(dim=-1) for each in (lens, processed))
    assert largest_difference(ours, theirs, inputs.attention_mask) < 1e-4


def test_in_bfloat16():
    """No further from Hugging Face than Hugging Face in bfloat16 is from itself in float32."""
    given = given_of("qwen3-vl")
    precise = reference_logits(wrapped("qwen3-vl").hf_model, given)
    lens = lensplug.wrap(qwen3_vl().to(torch.bfloat16), check=False)
    inputs = lens.encode(given)
    rounded = reference_logits(lens.hf_model, lens.encode(given).model_inputs)
    report = lens.check(inputs)
    assert report.agrees
    assert report.max_logit_difference < largest_difference(rounded, precise, inputs.attention_mask)
    assert lens.run_with_cache(inputs)[1]["deepstack", 0].dtype == torch.bfloat16


def test_its_processor_with_images_and_videos():
    lens = wrapped_with_processor()
    pictures = [[scene(32, 24, 1)], [scene(16, 40, 2), scene(24, 24, 3)]]
    question = "What is the color ?"
    for inputs in (
        lens.prepare([question, f"one two {question}"], images=pictures),
        lens.prepare(question, videos=[frames(4, 1).numpy()]),
        lens.prepare(question, images=[scene(32, 24, 1)], videos=[frames(4, 2).numpy()]),
    ):
        report = lens.check(inputs)
        assert report.agrees and report.max_logit_difference < 2e-5
        image = inputs.modality.mask("image") | inputs.modality.mask("video")
        features = inputs.decoder_inputs["deepstack"]
        assert torch.equal(features.any(dim=-1), image.expand(2, -1, -1))
        answer = lens.generate(inputs, max_new_tokens=4)
        given = {name: value for name, value in inputs.model_inputs.items()}
        expected = lens.hf_model.generate(**given, max_new_tokens=4, do_sample=False)
        assert torch.equal(answer.tokens, expected[:, inputs.shape[1] :])


def test_it_comes_off():
    model = wrapped("qwen2-vl").model
    before = snapshot(model)
    inputs = wrapped("qwen2-vl").encode(qwen_prompts(12))
    expected = model(inputs)
    with BridgeDeepstack(model, 2):
        assert hasattr(model.blocks[1], "hook_deepstack") and not hasattr(model.blocks[2], "hook_deepstack")
        torch.testing.assert_close(model(inputs), expected)
    assert snapshot(model) == before
    with BridgeDeepstack(model, 0):
        assert snapshot(model) == before
