"""Cores that are given more than embeddings (Qwen2-VL, Qwen2.5-VL, Gemma 3): a bridge computes them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.beside import FAMILIES, gemma_prompts, given_of, wrapped
from support.built import HOOKED, ONLY_HOOKED
from support.eager import eager
from support.models import largest_difference, reference_logits

import lensplug
from lensplug import LensplugError, analysis


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def lens(family):
    return wrapped(family)


@pytest.fixture
def given(family):
    return given_of(family)


@pytest.fixture
def inputs(lens, given):
    return lens.encode(given)


def attentions(hf_model, given):
    """Hugging Face's own."""
    with eager(hf_model.get_decoder()):
        return hf_model(**given, output_attentions=True, use_cache=False).attentions


def test_logits_are_hugging_faces(lens, given, inputs):
    assert lens.engine == "bridge"
    reference = reference_logits(lens.hf_model, given)
    with torch.no_grad():
        assert largest_difference(lens.model(inputs), reference, inputs.attention_mask) < 1e-4
    report = lens.check(inputs)
    assert report.agrees and report.max_logit_difference < 1e-4
    other = reference_logits(lens.hf_model, {**given, "pixel_values": -given["pixel_values"]})
    assert largest_difference(reference, other) > 0.1, "the image must matter"


def test_what_the_model_gives_beside_matters(lens, inputs):
    """The test can fail: without it the same embeddings give other logits."""
    beside = dict.fromkeys(lens.core.beside)
    if lens.core.sees_whole_prompt:  # there no mask means the same
        beside["attention_mask"] = torch.ones(1, 1, *[inputs.shape[1]] * 2, dtype=torch.bool).tril()
    with torch.no_grad():
        right = lens.model(inputs)
        as_text = lens.model(replace(inputs, decoder_inputs=beside))
    assert largest_difference(as_text[:1], right[:1]) > 0.5


def test_patterns_are_hugging_faces(lens, given, inputs):
    real = inputs.attention_mask.bool()
    _, cache = lens.run_with_cache(inputs)
    _, rows = lens.run_with_cache(inputs, query_positions=[-1, -9], keep=["head_mean", "modality_mass"])
    for layer, theirs in enumerate(attentions(lens.hf_model, given)):
        for example in range(2):
            ours = cache["pattern", layer][example][:, real[example]]
            torch.testing.assert_close(ours, theirs[example][:, real[example]], atol=1e-5, rtol=0)
        mean = rows[f"blocks.{layer}.attn.head_mean"]
        torch.testing.assert_close(mean[real], theirs.mean(1)[real], atol=1e-5, rtol=0)
        torch.testing.assert_close(rows["pattern", layer][:, :, 0], theirs[:, :, -1], atol=1e-5, rtol=0)
        torch.testing.assert_close(rows["pattern", layer][:, :, 1], theirs[:, :, -9], atol=1e-5, rtol=0)


@pytest.mark.parametrize("block_bytes", [1, 2**26])
def test_gradient_rollout_by_blocks_is_that_of_patterns(lens, inputs, block_bytes, monkeypatch):
    monkeypatch.setattr("lensplug.patches.pattern_blocks.BLOCK_BYTES", block_bytes)
    _, cache, grads = lens.run_with_gradients(inputs, target=5)
    _, cams, cam_grads = lens.run_with_gradients(inputs, target=5, keep="cam")
    ours = analysis.gradient_rollout(cams, cam_grads, rows=-1).values
    theirs = analysis.gradient_rollout(cache, grads, rows=-1).values
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert float(grads["pattern", 0].abs().max()) > 1e-3


def test_generation_is_hugging_faces_and_its_answer_is_checked(lens, given, inputs):
    answer = lens.generate(inputs, max_new_tokens=7)
    expected = lens.hf_model.generate(**given, max_new_tokens=7, do_sample=False)
    assert torch.equal(answer.tokens, expected[:, given["input_ids"].shape[1] :])
    assert len(answer.tokens.unique()) > 3
    report = lens.check(answer.inputs)
    assert report.agrees and report.positions == int(inputs.attention_mask.sum()) + 14
    again = lens.generate(answer.inputs, max_new_tokens=2)
    assert lens.check(again.inputs).agrees
    with pytest.raises(LensplugError, match="generates with use_past_kv_cache=True"):
        lens.model.generate(inputs, max_new_tokens=2, use_past_kv_cache=False, stop_at_eos=False, verbose=False)


def test_parts_sum_to_the_residual_and_the_logit(lens, inputs):
    logits, cache = lens.run_with_cache(inputs)
    real, last = inputs.attention_mask.bool(), cache["resid_post", -1]
    parts = cache.decompose_resid()
    torch.testing.assert_close(parts.sum(0)[real], last[real], atol=1e-3, rtol=1e-4)
    attributed = cache.logit_attrs(parts, tokens=5).sum(0)
    cap = lens.model.cfg.output_logits_soft_cap
    expected = logits[..., 5] if not cap or cap < 0 else cap * (logits[..., 5] / cap).atanh()
    torch.testing.assert_close(attributed[real], expected[real], atol=1e-3, rtol=1e-3)


def test_the_last_entry_of_the_logit_lens_is_the_model(lens, inputs):
    logits, cache = lens.run_with_cache(inputs)
    result = analysis.logit_lens(cache, positions=-1, target=5)
    expected = logits[:, -1].log_softmax(-1)[:, 5]
    torch.testing.assert_close(result.log_probability[:, -1, 0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("query", [-1, -13])
def test_chance_is_what_the_layers_let_a_query_see(lens, inputs, query):
    """Also within the image, which sees itself whole in Gemma 3, and in layers with a window."""
    _, cache = lens.run_with_cache(inputs)
    heads = analysis.head_specialization(cache, inputs.modality, query=query)
    at = inputs.attention_mask.shape[1] + query
    for example in range(2):
        for layer in range(3):
            seen = cache["pattern", layer][example, :, at].amax(0) > 0
            for index, name in enumerate(heads.modalities):
                first = torch.arange(len(seen)) == int(inputs.attention_mask[example].argmax())
                own = first if name == "sink" else inputs.modality.mask(name)[example] & ~first
                expected = float((seen & own).sum() / seen.sum())
                found = float(heads.chance[example, layer, index])
                assert found == pytest.approx(expected) or (expected == 0 and found != found)


def test_an_image_of_gemma_sees_itself_whole():
    lens = wrapped("gemma3")
    inputs = lens.encode(gemma_prompts(20))
    image = inputs.modality.mask("image")[0].nonzero()[:, 0]
    _, cache = lens.run_with_cache(inputs)
    assert bool((cache["pattern", 1][0][:, image[0], image] > 0).all())
    heads = analysis.head_specialization(cache, inputs.modality, query=int(image[0]))
    assert float(heads.chance[0, 1, heads.modalities.index("image")]) == pytest.approx(4 / 9)


def test_a_rollout_by_blocks_needs_attention_that_does_not_look_ahead(monkeypatch):
    monkeypatch.setattr("lensplug.patches.pattern_blocks.BLOCK_BYTES", 1)
    lens = wrapped("gemma3")
    inputs = lens.encode(gemma_prompts(20))
    with pytest.raises(LensplugError, match="attention looks ahead in this model"):
        lens.run_with_cache(inputs, needs=[], keep="rollout")
    _, cache = lens.run_with_cache(inputs, needs=[], keep="head_mean")
    ours = analysis.attention_rollout(cache, rows=-1).values
    torch.testing.assert_close(ours, analysis.attention_rollout(lens.run_with_cache(inputs)[1], rows=-1).values)


def test_embeddings_alone_are_refused(lens, inputs):
    beside = " and ".join(lens.core.beside)
    for run in (lens.model, lens.model.generate, lens.model.run_with_cache):
        with pytest.raises(LensplugError, match=f"this core is given {beside} by its model, besides embeddings"):
            run(inputs.embeds)


@pytest.mark.skipif(not HOOKED, reason=ONLY_HOOKED)
def test_hooked_transformer_refuses_them_by_reason(family):
    bidirectional, reasons = "bidirectional over the image", {"qwen2": "three parts", "qwen3": "adds image features"}
    reason = reasons.get(family.partition("-")[0].removesuffix(".5"), bidirectional)
    with pytest.raises(LensplugError, match=f"cannot be a HookedTransformer: .*{reason}.*engine='bridge'"):
        lensplug.wrap(FAMILIES[family][0](), engine="hooked_transformer")


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen2.5-vl"])
def test_an_older_transformers_that_rotates_inside_its_blocks_is_refused(family, monkeypatch):
    model = FAMILIES[family][0]()
    rotation = model.get_decoder().rotary_emb
    made = rotation.forward
    monkeypatch.setattr(rotation, "forward", lambda x, ids: tuple(part.expand(3, *part.shape) for part in made(x, ids)))
    with pytest.raises(LensplugError, match="inside its blocks, .*pip install -U 'transformers>=5.17'"):
        lensplug.wrap(model)


def test_text_alone(lens):
    tokens = torch.arange(3, 33)[None]
    given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    reference = reference_logits(lens.hf_model, given)
    assert largest_difference(lens.model(lens.encode(given)), reference) < 1e-4
    assert largest_difference(lens.model(tokens), reference) < 1e-4
