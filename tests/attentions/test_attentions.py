"""Attentions of Hugging Face's models as caches: the model's own numbers, under which analyses do what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import encoders
from support.caches import causal_patterns

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.attentions.checks import ROUNDING
from lensplug.positions.modality_map import ModalityMap

ENCODERS = [name for name in encoders.CONFIGS if name != "LlamaForCausalLM"]
BERT = "BertForSequenceClassification"


def cache_of(name, **options):
    mask = encoders.batch(name).get("attention_mask")
    return lensplug.cache_from_attentions(encoders.attentions(name), attention_mask=mask, **options)


def bidirectional(batch=1, length=4, layers=2, heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(2 * torch.randn(batch, heads, length, length, generator=generator)).softmax(-1) for _ in range(layers)]


@pytest.mark.parametrize("name", encoders.CONFIGS)
def test_the_cache_holds_the_models_own_attentions(name):
    own = encoders.attentions(name)
    cache = cache_of(name, model_name="tiny")
    assert len(own) == 3  # of ALBERT too, whose layers are one
    assert list(cache.keys()) == [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    for layer, pattern in enumerate(own):
        assert torch.equal(cache["pattern", layer], pattern)
        assert 0.3 < float(pattern[1].amax(-1).mean()) < 0.99  # neither flat nor all on one
    if name.startswith("Albert"):
        assert not torch.equal(own[0], own[1])
    direction = "causal" if name.startswith("Llama") else "bidirectional"
    cfg = cache.model.cfg
    assert (cfg.n_layers, cfg.n_heads, cfg.attention_dir, cfg.model_name) == (3, 2, direction, "tiny")


def rolled(attentions, example):
    product = np.eye(attentions[0].shape[-1])
    for attention in attentions:
        product = (attention[example].double().mean(0).numpy() / 2 + np.eye(len(product)) / 2) @ product
    return product


@pytest.mark.parametrize("name", encoders.CONFIGS)
def test_rollout_is_the_plain_recursion_and_its_rows_sum_to_one(name):
    result = analysis.attention_rollout(cache_of(name), per_layer=True)
    assert result.by_layer is not None
    mask = encoders.batch(name).get("attention_mask", torch.ones(result.values.shape[:2]))
    for example in range(2):
        expected = rolled(encoders.attentions(name), example)
        np.testing.assert_allclose(result.values[example].numpy(), expected, atol=1e-6)
        first = rolled(encoders.attentions(name)[:1], example)
        np.testing.assert_allclose(result.by_layer[example, 0].numpy(), first, atol=1e-6)
    np.testing.assert_allclose(result.values.sum(-1).numpy(), 1, atol=1e-5)
    assert (float(result.values[0].triu(1).max()) == 0) == name.startswith("Llama")
    real = mask[0].bool()
    assert float(result.values[0][real][:, ~real].sum()) == 0


def by_hand(attentions, gradients, example):
    relevance = np.eye(attentions[0].shape[-1])
    for attention, gradient in zip(attentions, gradients, strict=True):
        cam = (attention[example] * gradient[example]).detach().clamp(min=0).double().mean(0).numpy()
        relevance = relevance + cam @ relevance
    return relevance


@pytest.mark.parametrize("name", [BERT, "AlbertForSequenceClassification"])
@pytest.mark.parametrize("retained", [True, False])
def test_gradient_rollout_is_autograd_by_hand(name, retained):
    outputs = encoders.model(name)(**encoders.batch(name), output_attentions=True)
    target = outputs.logits[:, 1].sum()
    expected = torch.autograd.grad(target, outputs.attentions, retain_graph=True)
    if retained:
        for attention in outputs.attentions:
            attention.retain_grad()
        target.backward()
    mask = encoders.batch(name)["attention_mask"]
    cache = lensplug.cache_from_attentions(outputs.attentions, attention_mask=mask)
    grads = lensplug.grads_from_attentions(outputs.attentions, target=None if retained else target)
    assert not cache["pattern", 0].requires_grad
    result = analysis.gradient_rollout(cache, grads)
    assert float(result.relevance.max()) > 1e-3
    np.testing.assert_allclose(result.values[1].numpy(), by_hand(outputs.attentions, expected, 1), rtol=1e-4, atol=1e-6)
    row = analysis.gradient_rollout(cache, grads, rows=0).values[0, 0]
    hand = by_hand(outputs.attentions, expected, 0)[0]
    np.testing.assert_allclose(row[:5].numpy(), hand[:5], rtol=1e-4, atol=1e-6)


def test_the_gradient_is_what_a_change_of_the_attention_does_to_the_logit(monkeypatch):
    from transformers.models.bert import modeling_bert

    model, inputs = encoders.model(BERT).double(), encoders.batch(BERT)
    outputs = model(**inputs, output_attentions=True)
    grads = lensplug.grads_from_attentions(outputs.attentions, target=outputs.logits[1, 0])
    eager, step = modeling_bert.eager_attention_forward, 1e-5
    for layer in range(3):

        def changed(sign, layer=layer):
            calls = []

            def attend(module, query, key, value, *args, **kwargs):
                _, weights = eager(module, query, key, value, *args, **kwargs)
                calls.append(module)
                if len(calls) == layer + 1:
                    weights = weights.clone()
                    weights[1, 0, 2, 4] += sign * step
                return (weights @ value).transpose(1, 2).contiguous(), weights

            monkeypatch.setattr(modeling_bert, "eager_attention_forward", attend)
            with torch.no_grad():
                return float(model(**inputs).logits[1, 0])

        slope = (changed(1) - changed(-1)) / (2 * step)
        assert float(grads["pattern", layer][1, 0, 2, 4]) == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_another_target_may_follow_and_what_it_does_not_depend_on_has_zeros():
    outputs = encoders.model(BERT)(**encoders.batch(BERT), output_attentions=True, output_hidden_states=True)
    first = lensplug.grads_from_attentions(outputs.attentions, target=outputs.logits[0, 0])
    other = lensplug.grads_from_attentions(outputs.attentions, target=outputs.logits[0, 1])
    assert not torch.equal(first["pattern", 0], other["pattern", 0])
    early = lensplug.grads_from_attentions(outputs.attentions, target=outputs.hidden_states[2].sum())
    assert float(early["pattern", 1].abs().max()) > 0 and float(early["pattern", 2].abs().max()) == 0


def test_padding_is_told_by_the_mask():
    cache = cache_of(BERT)
    assert torch.equal(cache.attention_mask, encoders.batch(BERT)["attention_mask"])
    assert analysis.attention_rollout(cache, rows=-1).rows.tolist() == [[4], [6]]
    received = analysis.received_attention(cache, layer=1, scale="none").values
    own = encoders.attentions(BERT)[1][0].mean(0)
    torch.testing.assert_close(received[0, :5], own[:5, :5].mean(0))
    assert received[0, 5:].isnan().all()
    looked = analysis.attention_from(cache, queries=-1)
    assert torch.equal(looked.values[0, 1, :, 0], encoders.attentions(BERT)[1][0, :, 4])


def test_a_decoder_is_causal_and_its_left_padding_has_to_be_told():
    inputs = encoders.batch("LlamaForCausalLM", left=True)
    own = encoders.attentions("LlamaForCausalLM", inputs=inputs)
    cache = lensplug.cache_from_attentions(own, attention_mask=inputs["attention_mask"])
    assert cache.model.cfg.attention_dir == "causal"
    assert analysis.attention_rollout(cache, rows=0, attention_mask=torch.ones(2, 7).long()).rows.tolist() == [[0], [0]]
    with pytest.raises(LensplugError, match="2 of 12 positions look at later ones.*give attention_mask="):
        lensplug.cache_from_attentions(own)
    said = lensplug.cache_from_attentions(own, attention_dir="bidirectional")
    assert said.model.cfg.attention_dir == "bidirectional"


@pytest.mark.parametrize("query", [0, 2, -1])
def test_uniform_attention_is_chance_for_every_query_of_an_encoder(query):
    ids = torch.tensor([[1, 49, 49, 2, 3, 0]])
    mask = (ids != 0).long()
    uniform = [(mask / mask.sum()).expand(1, 2, 6, 6)] * 2
    cache = lensplug.cache_from_attentions(uniform, attention_mask=mask)
    kinds = ModalityMap.build(ids, mask, placeholder_ids={"image": 49})
    heads = analysis.head_specialization(cache, kinds, query=query)
    assert heads.modalities == ("text", "image", "sink")
    torch.testing.assert_close(heads.chance[0, 0], torch.tensor([2 / 5, 2 / 5, 1 / 5], dtype=heads.chance.dtype))
    torch.testing.assert_close(heads.mean, torch.ones_like(heads.mean))


def test_tokens_name_positions():
    texts = [[f"t{example}{at}" for at in range(7)] for example in range(2)]
    cache = cache_of(BERT, tokens=texts)
    assert cache.str_tokens == tuple(map(tuple, texts))
    received = analysis.received_attention(cache, layer=0)
    assert received.str_tokens == cache.str_tokens
    assert "t13" in views.attention_heads(cache, layer=-1, example=1).body
    one = lensplug.cache_from_attentions(bidirectional(), tokens=list("abcd"))
    assert one.str_tokens == (tuple("abcd"),)
    assert lensplug.cache_from_attentions(bidirectional()).str_tokens is None


def test_rows_that_were_rounded_are_scaled_when_asked():
    patterns = [(pattern * 100).round() / 100 for pattern in bidirectional(length=9)]
    assert float((patterns[1].sum(-1) - 1).abs().max()) > ROUNDING
    with pytest.raises(LensplugError, match=r"layer 0 sum to 0\.9\d* to 1\.0\d*, .*off by up to 0\.0.*normalize=True"):
        lensplug.cache_from_attentions(patterns)
    scaled = lensplug.cache_from_attentions(patterns, normalize=True)["pattern", 1]
    torch.testing.assert_close(scaled, patterns[1] / patterns[1].sum(-1, keepdim=True))


def test_half_precision_is_no_reason_to_refuse():
    for dtype in (torch.bfloat16, torch.float16):
        patterns = [pattern.to(dtype) for pattern in bidirectional(length=40)]
        cache = lensplug.cache_from_attentions(patterns)
        assert cache["pattern", 0].dtype == dtype
        assert analysis.attention_rollout(cache).provenance.dtype == str(dtype).removeprefix("torch.")


def test_a_model_run_with_sdpa_or_with_dropout_is_refused():
    sdpa = encoders.model(BERT, "sdpa")
    with pytest.raises(LensplugError, match=r"set_attn_implementation\('eager'\).*output_attentions=True"):
        lensplug.cache_from_attentions(encoders.attentions(BERT, sdpa))
    torch.manual_seed(0)
    training = encoders.model(BERT).train()
    mask = encoders.batch(BERT)["attention_mask"]
    with pytest.raises(LensplugError, match=r"sum to .* expected 1 .*call model.eval\(\)"):
        lensplug.cache_from_attentions(encoders.attentions(BERT, training), attention_mask=mask)


def test_padding_without_a_mask_and_a_mask_of_another_run_are_refused():
    own, mask = encoders.attentions(BERT), encoders.batch(BERT)["attention_mask"]
    with pytest.raises(LensplugError, match=r"example 0 looks at the positions \[5, 6\].*attention_mask=batch"):
        lensplug.cache_from_attentions(own)
    lensplug.cache_from_attentions(own, attention_mask=torch.ones_like(mask))  # who says so may
    unpadded = {"input_ids": encoders.batch(BERT)["input_ids"]}
    with pytest.raises(LensplugError, match="is on them: give the mask that the model was run with"):
        lensplug.cache_from_attentions(encoders.attentions(BERT, inputs=unpadded), attention_mask=mask)
    with pytest.raises(LensplugError, match=r"attention_mask has the shape \[2, 6\], the cache is \[2, 7\]"):
        lensplug.cache_from_attentions(own, attention_mask=mask[:, 1:])


def with_nan():
    patterns = bidirectional()
    patterns[1][0, 0, 0, 0] = math.nan
    return patterns


STEPS = [tuple(bidirectional()), tuple(pattern[:, :, -1:] for pattern in bidirectional())]
REFUSED = {
    "none": (None, {}, "returned no attention"),
    "layer-none": ([bidirectional()[0], None], {}, "returned no attention"),
    "nan": (with_nan(), {}, "layer 1 holds NaN"),
    "cross": ([torch.full((1, 2, 3, 5), 0.2)], {}, "expected as many queries as keys: cross attention"),
    "step": ([pattern[:, :, -1:] for pattern in bidirectional()], {}, "key-value cache has one row"),
    "generate": (STEPS, {}, "entry 0 of attentions is a tuple.*generate returns a tuple for each step"),
    "lengths": ([bidirectional()[0], *bidirectional(length=5)], {}, r"layer 1 has the shape \[1, 2, 5, 5\], that of"),
    "heads": ([bidirectional()[0], *bidirectional(heads=3)], {}, "pruned heads"),
    "one-tensor": (bidirectional()[0], {}, r"shape \[2, 4, 4\], expected \[batch head query key\]: give a tuple"),
    "scores": ([torch.randn(1, 2, 4, 4)], {}, "not attention after the softmax"),
    "whole-output": ({"logits": 1, "encoder_attentions": 2}, {}, "a whole dict: give one of its encoder_attentions"),
    "no-output": ({"logits": 1}, {}, "output_attentions=True"),
    "zeros": ([torch.zeros(1, 2, 4, 4)], {"normalize": True}, "nothing but zeros"),
    "tokens": (bidirectional(), {"tokens": ["a"]}, r"tokens is for \[1, 1\] positions, the cache is \[1, 4\]"),
    "ids": (bidirectional(), {"tokens": [[1, 2, 3, 4]]}, "holds a int, expected texts: tokenizer.convert_ids"),
    "direction": (bidirectional(), {"attention_dir": "both"}, "attention_dir is 'both', expected 'causal'"),
    "not-causal": (bidirectional(), {"attention_dir": "causal"}, "position 0 of example 0 looks at later ones"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(given, options, message):
    with pytest.raises(LensplugError, match=message):
        lensplug.cache_from_attentions(given, **options)


def test_gradients_that_are_not_there_are_refused():
    outputs = encoders.model(BERT)(**encoders.batch(BERT), output_attentions=True)
    logit = outputs.logits[0, 0]
    with pytest.raises(LensplugError, match=r"layers \[0, 1, 2\] hold no gradient: give target="):
        lensplug.grads_from_attentions(outputs.attentions)
    with pytest.raises(LensplugError, match=r"target is a tensor of shape \[2\], expected one number"):
        lensplug.grads_from_attentions(outputs.attentions, target=outputs.logits[0])
    with pytest.raises(LensplugError, match="target is float, expected one number"):
        lensplug.grads_from_attentions(outputs.attentions, target=logit.item())
    with pytest.raises(LensplugError, match="have no graph: .*torch.no_grad"):
        lensplug.grads_from_attentions(encoders.attentions(BERT), target=logit)
    again = encoders.model(BERT)(**encoders.batch(BERT), output_attentions=True)
    with pytest.raises(LensplugError, match="depends on none of these attentions"):
        lensplug.grads_from_attentions(again.attentions, target=logit)
    cache = cache_of(BERT)
    fewer = lensplug.grads_from_attentions(outputs.attentions[:2], target=logit)
    with pytest.raises(LensplugError, match=r"gradient of 'blocks.2.attn.hook_pattern'"):
        analysis.gradient_rollout(cache, fewer)


def test_what_the_cache_lacks_is_refused():
    cache = lensplug.cache_from_attentions(causal_patterns(2, 1, 2, 5))
    assert cache.model.cfg.attention_dir == "causal"
    for call, message in (
        (lambda: analysis.logit_lens(cache), "needs"),
        (lambda: analysis.attention_rollout(cache, head_fusion="value_weighted"), "hook_v.*made from attentions alone"),
        (lambda: analysis.attention_flow(cache, residual="measured"), "hook_resid_pre.*made from attentions alone"),
        (lambda: analysis.attention_rollout(cache, heads=[2]), "heads 0 to 1"),
        (lambda: analysis.attention_rollout(cache, layers=(0, 2)), "of 0 to 1"),
        (lambda: analysis.received_attention(cache, layer=2), "layers 0 to 1"),
        (lambda: views.attention_heads(cache, layer=2), "layers 0 to 1"),
    ):
        with pytest.raises(LensplugError, match=message):
            call()
