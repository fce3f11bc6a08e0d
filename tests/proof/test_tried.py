"""Cores that no table knows are tried, and given only where they prove to be Hugging Face's own."""

from __future__ import annotations

import copy
from functools import cache as cached
from typing import Any

import pytest
import torch
from support.eager import eager
from support.families.media import media, text_inputs
from support.families.small import small_model
from support.models import largest_difference

import lensplug
from lensplug import interventions
from lensplug.errors import LensplugError
from lensplug.patches.bridge.core import PRINTED_MODULE

TRIED = {
    "cohere_compass": "attention and MLP side by side, LayerNorms without bias",
    "paddleocr_vl": "positions of three parts",
    "exaone4_5": "norms behind attention and MLP alone",
    "fuyu": "queries, keys and values in one matrix, a part of each head rotated",
    "hyperclovax_vision_v2": "multipliers of what is added to the stream",
    "lfm3_vl": "convolutions in place of attention in some layers",
    "chameleon": "pictures merged inside its decoder, words that it never says",
    "kimi_k25": "latent keys and values, mixtures of experts",
}
"""Family -> what is special about its layers."""


def _picture(model) -> dict[str, Any]:
    return next(inputs for kind, inputs in media(model) if kind == "image" and not isinstance(inputs, str))


@pytest.fixture(scope="module", params=TRIED)
def lens(request):
    return wrapped(request.param)


@pytest.fixture(scope="module")
def cohere():
    return wrapped("cohere_compass")


@cached
def wrapped(family):
    return lensplug.wrap(small_model(family))


def test_it_is_proved_and_says_so(lens):
    assert (lens.engine, lens.proof.standing) == ("bridge", "proved")
    assert lens.proof.first_failure is None
    inputs = lens.encode(text_inputs())
    _, cache = lens.run_with_cache(inputs)
    result = lensplug.analysis.logit_lens(cache, positions=-1, top_k=3)
    assert "proved: " in str(result.provenance.options)


def test_it_is_hugging_faces_model(lens):
    model, model_inputs = lens.hf_model, text_inputs()
    kinds = [inputs for _, inputs in media(model) if not isinstance(inputs, str)]
    for given in [model_inputs, *kinds]:
        logits, cache = lens.run_with_cache(lens.encode(given))
        with torch.no_grad():
            reference = model(**given, use_cache=False).logits
        assert largest_difference(logits, reference) <= 1e-4 * float(reference.abs().max())
        parts = cache.decompose_resid().sum(0)
        last = cache["resid_post", -1]
        assert largest_difference(parts, last) <= 1e-4 * float(last.abs().max())


def test_patterns_are_hugging_faces(lens):
    model, model_inputs = lens.hf_model, text_inputs()
    _, cache = lens.run_with_cache(lens.encode(model_inputs))
    with torch.no_grad(), eager(lens.core.decoder):
        theirs = model(**model_inputs, use_cache=False, output_attentions=True).attentions
    names = [name for name in cache if name.endswith("hook_pattern")]
    assert len(names) == len(theirs)
    for name, pattern in zip(names, theirs, strict=True):
        assert largest_difference(cache[name], pattern) <= 1e-5


def test_rows_answers_edits_and_gradients(lens):
    inputs = lens.encode(text_inputs())
    _, whole = lens.run_with_cache(inputs)
    _, cache = lens.run_with_cache(inputs, query_positions=[-1])
    name = next(name for name in whole if name.endswith("hook_pattern"))
    torch.testing.assert_close(cache[name][:, :, 0], whole[name][:, :, -1], atol=1e-5, rtol=0)
    answer = lens.generate(inputs, max_new_tokens=4)
    model_inputs = text_inputs()
    reference = lens.hf_model.generate(**model_inputs, max_new_tokens=4, do_sample=False)
    assert answer.tokens[0].tolist() == reference[0, -4:].tolist()
    _, _, gradients = lens.run_with_gradients(inputs, target=7)
    assert float(gradients[name].abs().max()) > 0
    direction = torch.randn(lens.model.cfg.d_model)
    with lens.intervene(interventions.Steer(direction, layers=2)):
        assert largest_difference(lens.run_with_hooks(inputs, fwd_hooks=[]), lens.model(inputs)) == 0
        steered = lens.model(inputs)
    assert largest_difference(steered, lens.model(inputs)) > 1e-2


def test_copies_keep_their_proof(cohere):
    copied = copy.deepcopy(cohere)
    assert copied.proof == cohere.proof
    inputs = text_inputs()
    assert largest_difference(copied.model(copied.encode(inputs)), cohere.model(cohere.encode(inputs))) == 0


def test_a_fault_inside_a_layer_is_told_without_the_printed_layer():
    printed = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 3)), torch.nn.Linear(3, 2))
    assert PRINTED_MODULE.sub(r"\1", f"{printed} got 2, {printed[0]} none (see f())") == (
        "Sequential got 2, Sequential none (see f())"
    )
    with pytest.raises(LensplugError, match=r"DiffusionGemma") as refusal:
        lensplug.wrap(small_model("diffusion_gemma"))
    assert "HookPoint" not in str(refusal.value)


def test_layers_that_write_otherwise_are_refused_by_name():
    with pytest.raises(LensplugError, match=r"layer 0 \(HYV4VLDecoderLayer\) does not add what its parts return"):
        lensplug.wrap(small_model("hy_v4_vl"))
    with pytest.raises(LensplugError, match=r"what it adds is that of InklingShortConvolution.*cache_from_attentions"):
        lensplug.wrap(small_model("inkling_mm_model"))


def test_words_that_a_model_never_says_are_forbidden_in_the_core_too():
    model = small_model("chameleon")
    lens = lensplug.wrap(model, prove=False)
    inputs = lens.encode(_picture(model))
    report = lens.check(inputs)
    assert report.agrees and report.logit_scale < 1e3
    logits, cache = lens.run_with_cache(inputs)
    assert logits is not None
    never: torch.Tensor = logits[0, -1].eq(torch.finfo(logits.dtype).min)
    assert never.nonzero()[:, 0].tolist() == sorted(model.model.vocabulary_mapping.image_tokens)
    read = lensplug.analysis.logit_lens(cache, positions=-1, top_k=3)
    assert torch.equal(read.top_tokens[0, -1, 0], logits[0, -1].topk(3).indices)
    assert model.lm_head.bias is None
    lens.model.unembed.original_component.bias = None
    assert not lens.check(inputs).agrees


def test_a_decoder_that_does_more_with_pictures_than_to_merge_them_is_refused():
    model = small_model("chameleon")
    lens = lensplug.wrap(model, prove=False)
    inputs = _picture(model)

    def brighter(module, args, kwargs, output):
        if kwargs.get("pixel_values") is not None:
            output.last_hidden_state = output.last_hidden_state + 1
        return output

    with model.model.register_forward_hook(brighter, with_kwargs=True):
        with pytest.raises(LensplugError, match=r"more than embeddings \(pixel_values\)"):
            lens.encode(inputs)


def test_what_fails_its_proof_is_refused_by_layer_and_number():
    model = small_model("cohere_compass")
    # A hook is not copied: from here on its third layer is another than the one that is wrapped.
    model.get_decoder().layers[2].mlp.register_forward_hook(lambda module, args, output: 1.01 * output)
    with pytest.raises(LensplugError, match=r"failed the proof on load \(.* failed .*e-0\d .* at layer 2"):
        lensplug.wrap(model, check=False)


def test_layers_without_attention_are_named():
    lens = lensplug.wrap(small_model("qwen3_5"))
    inputs = lens.encode(text_inputs())
    _, cache = lens.run_with_cache(inputs)
    assert [name for name in cache if name.endswith("hook_pattern")] == ["blocks.3.attn.hook_pattern"]
    with pytest.raises(LensplugError, match=r"layer 0 of this model has no attention.* are 3\."):
        lensplug.analysis.received_attention(cache, layer=0)
    assert lensplug.analysis.received_attention(cache, layer=3) is not None
    with pytest.raises(LensplugError, match="layer 0 of this model has no attention"):
        with lens.intervene(interventions.Knockout(from_="text", to="last")):
            lens.model(inputs)


def test_unproved_on_request():
    lens = lensplug.wrap(small_model("exaone4_5"), prove=False)
    assert lens.proof.standing == "not proved"
    assert "prove=False" in str(lens.proof)


def test_process_weights_is_for_tested_families():
    with pytest.raises(LensplugError, match="leave process_weights out"):
        lensplug.wrap(small_model("exaone4_5"), engine="bridge", process_weights=True)


def test_layers_that_return_more_than_their_stream_are_proved():
    """Mistral Large 4's hand their choice of keys on to the next."""
    lens = lensplug.wrap(small_model("mistral_large4"))
    assert (lens.proof.standing, lens.proof.first_failure) == ("proved", None)
