"""Gemma 4: per-layer inputs are a term of the stream, and what layers multiply it by is in every decomposition."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from support.eager import eager
from support.families.media import text_inputs
from support.gemma4 import SCALES, gemma4, wrapped
from support.models import largest_difference, reference_logits, scene

import lensplug
from lensplug import LensplugError, analysis, engines
from lensplug.inputs.edited_inputs import in_place
from lensplug.patches.both.from_layer import FromLayer

QUESTION = "What is this ?"
PER_LAYER = [f"{layer}_per_layer_out" for layer in range(4)]
noise = numpy.random.default_rng(0)
MEDIA: dict[str, Any] = {
    "image": {"images": [scene(64, 48, 1)]},
    "video": {"videos": [noise.integers(0, 255, (2, 48, 96, 3), dtype=numpy.uint8)]},
    "audio": {"audio": [(noise.standard_normal(8000).astype(numpy.float32) / 8, 16_000)]},
}


@pytest.fixture(params=["E", "A"])
def form(request):
    return request.param


@pytest.fixture
def lens(form):
    return wrapped(form)


@pytest.fixture
def inputs(lens):
    return lens.prepare(QUESTION, **MEDIA["image"])


def streams_of(lens, given):
    """What each layer of Hugging Face's returns."""
    leaving = []
    with torch.no_grad():
        handles = [
            layer.register_forward_hook(lambda _, __, output: leaving.append(output.clone()))
            for layer in lens.core.decoder.layers
        ]
        lens.hf_model(**given, use_cache=False)
    for handle in handles:
        handle.remove()
    return leaving


@pytest.mark.parametrize("kind", MEDIA)
def test_logits_streams_and_patterns_are_hugging_faces(lens, kind):
    inputs = lens.prepare(QUESTION, **MEDIA[kind])
    assert bool(inputs.modality.mask(kind).any()) and lens.proof.standing == "proved"
    logits, cache = lens.run_with_cache(inputs)
    given = dict(inputs.model_inputs)
    assert largest_difference(logits, reference_logits(lens.hf_model, given)) < 1e-4
    for layer, expected in enumerate(streams_of(lens, given)):
        assert largest_difference(cache["resid_post", layer], expected) < 1e-5 * float(expected.abs().max()) * 5
    with torch.no_grad(), eager(lens.core.decoder):
        theirs = lens.hf_model(**given, use_cache=False, output_attentions=True).attentions
    for layer, pattern in enumerate(theirs):
        assert largest_difference(cache["pattern", layer], pattern) < 1e-5


@pytest.mark.parametrize("apply_ln", [False, True])
def test_parts_sum_with_the_numbers_of_the_layers(lens, inputs, form, apply_ln):
    _, cache = lens.run_with_cache(inputs)
    _, plain = lens.model.run_with_cache(inputs)  # TransformerLens's own cache
    assert lens.model.cfg.stream_scales == pytest.approx(SCALES)
    expected = cache["resid_post", -1]
    if apply_ln:
        expected = cache.apply_ln_to_stack(expected[None])[0]
    for held in (cache, plain):
        parts, labels = held.decompose_resid(apply_ln=apply_ln, return_labels=True)
        assert len(labels) == len(parts) and labels[9:] == (PER_LAYER if form == "E" else [])
        torch.testing.assert_close(parts.sum(0), expected, atol=1e-4, rtol=1e-4)
    if apply_ln:
        return
    written = cache["attn_out", 1] * SCALES[1] * SCALES[2] * SCALES[3]
    torch.testing.assert_close(parts[labels.index("1_attn_out")], written)
    part = cache.decompose_resid(2, mlp_input=True)  # what enters the third MLP
    torch.testing.assert_close(part.sum(0), cache["resid_mid", 2], atol=1e-4, rtol=1e-4)
    middle = cache["resid_mid", 0] + cache["mlp_out", 0]
    if form == "E":
        middle = middle + cache["blocks.0.hook_per_layer_out"]
        assert float(cache["blocks.0.hook_per_layer_out"].norm(dim=-1).min()) > 0.1
        with pytest.raises(LensplugError, match=r"does not hold 'blocks.0.hook_per_layer_out'.*'per_layer_out' in it"):
            lens.run_with_cache(inputs, names_filter=lambda name: "per_layer" not in name)[1].decompose_resid()
    torch.testing.assert_close(cache["resid_post", 0], middle * SCALES[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("by", ["layer", "head", "neuron"])
def test_direct_attribution_sums(lens, inputs, form, by):
    """It refuses what does not sum to the logit."""
    _, cache = lens.run_with_cache(inputs)
    if by == "neuron":
        why = "layers of this model have .48, 48, 96, 96." if form == "E" else "does not hold it"  # of its experts
        with pytest.raises(LensplugError, match=why):
            analysis.direct_attribution(cache, (5, 9), by=by)
        return
    result = analysis.direct_attribution(cache, (5, 9), by=by)
    assert [name for name in result.other_names if "per_layer" in name] == (PER_LAYER if form == "E" else [])
    shares = dict(zip(result.other_names, result.others[0].tolist(), strict=True))
    assert all(abs(shares[name]) > 1e-4 for name in shares if "per_layer" in name)


def test_answers_are_hugging_faces(lens, inputs):
    expected = lens.hf_model.generate(**inputs.model_inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(lens.generate(inputs, max_new_tokens=4).tokens, expected[:, inputs.shape[1] :])
    found = lens.model.generate(inputs, max_new_tokens=4, do_sample=False, verbose=False, stop_at_eos=False)
    assert torch.equal(found, expected)


def test_runs_begin_where_keys_are_made(lens, inputs, form):
    logits, cache = lens.run_with_cache(inputs)
    last = 0 if form == "E" else 3
    with torch.no_grad():
        with FromLayer(lens.model, last, cache["resid_pre", last]):
            torch.testing.assert_close(lens.model(inputs), logits, atol=3e-5, rtol=0)
        if form == "E":
            with pytest.raises(LensplugError, match="begin at layer 0 at the latest, not at 2"):
                FromLayer(lens.model, 2, cache["resid_pre", 2])
        edit = [("blocks.3.hook_resid_pre", lambda stream, hook: stream / 2)]
        expected = lens.model.run_with_hooks(inputs, fwd_hooks=edit)
        with lens.edited_runs(inputs, rows=torch.tensor([[inputs.shape[1] - 1]])) as runs:
            found = runs.logits(2, edit, from_layer=3)
    torch.testing.assert_close(found[1, 0], expected[0, -1:], atol=3e-5, rtol=0)


def test_an_edit_between_attention_and_mlp_reaches_experts_too(inputs, lens):
    """Experts read the stream beside the MLP: what is edited there is what all of them are given."""
    layer, change = lens.core.decoder.layers[1], torch.randn(32, generator=torch.Generator().manual_seed(5))
    handle = layer.post_attention_layernorm.register_forward_hook(lambda _, __, output: output + change)
    expected = reference_logits(lens.hf_model, dict(inputs.model_inputs))
    handle.remove()
    for name in ("resid_mid", "attn_out"):
        with torch.no_grad():
            edit = [(f"blocks.1.hook_{name}", lambda value, hook: value + change)]
            found = lens.model.run_with_hooks(inputs, fwd_hooks=edit)
        assert largest_difference(found, expected) < 1e-4
    assert largest_difference(lens.model(inputs), expected) > 0.1


def test_a_replaced_word_is_not_seen_by_its_per_layer_input():
    lens = wrapped("E")
    inputs = lens.prepare(QUESTION, **MEDIA["image"])
    given = inputs.decoder_inputs["per_layer_inputs"]
    embeds = torch.zeros_like(inputs.embeds)
    left = in_place(inputs, embeds).decoder_inputs["per_layer_inputs"]
    words, image = inputs.modality.mask("text"), inputs.modality.mask("image")
    assert not bool(left[words].any()) and bool(given[words].any())
    assert torch.equal(left[image], given[image]), "there it is that of the padding word, and says nothing"
    assert bool((given[image] == given[image][0]).all())


def test_gradients_are_hugging_faces(lens, inputs):
    embeds = inputs.embeds.clone().requires_grad_()
    handle = lens.core.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "inputs_embeds": embeds}), with_kwargs=True
    )
    lens.hf_model(**inputs.model_inputs, use_cache=False).logits[0, -1, 7].backward()
    handle.remove()
    for scope in (torch.enable_grad(), engines.checkpointed(lens.model)):
        own = inputs.embeds.clone().requires_grad_()
        with scope:
            (found,) = torch.autograd.grad(lens.model(replace(inputs, embeds=own))[0, -1, 7], own)
        assert largest_difference(found, embeds.grad) < 1e-4 * float(embeds.grad.abs().max())


def test_in_bfloat16():
    """No further from Hugging Face than it is from itself in float32."""
    model, processor = gemma4("E")
    given = text_inputs()
    given["input_ids"] = given["input_ids"] % 6 + 1
    precise = reference_logits(model, given)
    lens = lensplug.wrap(model.to(torch.bfloat16), processor)
    assert lens.model.cfg.stream_scales == pytest.approx(SCALES, rel=1e-2)
    inputs = lens.encode(given)
    rounded = reference_logits(model, given)
    assert lens.check(inputs).max_logit_difference < largest_difference(rounded, precise)
    expected = model.generate(**given, max_new_tokens=3, do_sample=False)[:, 12:]
    assert lens.generate(inputs, max_new_tokens=3).tokens.shape == expected.shape


def test_changed_behind_its_back_it_is_refused():
    model, processor = gemma4("E")
    wrap = partial(lensplug.wrap, model, processor, check=False)
    # A hook is not copied: from here on its second layer is another than the one that is wrapped.
    handle = (
        model.get_decoder()
        .layers[1]
        .post_per_layer_input_norm.register_forward_hook(lambda module, args, output: 1.01 * output)
    )
    with pytest.raises(LensplugError, match=r"failed the proof on load \(.* at layer 1"):
        wrap()
    handle.remove()
