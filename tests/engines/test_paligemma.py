"""PaliGemma: every position of a prompt sees all of it, an answer is causal; with its real processor."""

from __future__ import annotations

from functools import cache as once
from typing import Any

import pytest
import torch
import transformers as hf
from support.beside import TEXT, paligemma, paligemma_prompts
from support.models import largest_difference, reference_logits, scene

import lensplug
from lensplug import analysis
from lensplug.interventions import Knockout
from lensplug.tiny.words import word_tokenizer

VERSIONS = (1, 2)


@once
def wrapped(version: int) -> Any:
    tokenizer = word_tokenizer(
        ["answer en what is red blue one two \n"], special=["<pad>", "<eos>", "<bos>"], eos="<eos>", pad="<pad>"
    )
    tokenizer.bos_token = "<bos>"
    images = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(images, tokenizer)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    text = {**TEXT, "vocab_size": len(tokenizer)}
    return lensplug.wrap(paligemma(version, text, image_token), processor)


@pytest.fixture(params=VERSIONS)
def lens(request):
    return wrapped(request.param)


@pytest.fixture
def inputs(lens):
    return lens.prepare(
        ["<image>answer en what is red", "<image>what"],
        images=[[scene(40, 60)], [scene(64, 32, 1)]],
        chat_template=False,
    )


def processed(lens, suffix=None):
    images = [scene(40, 60), scene(64, 32, 1)]
    prompts = ["<image>answer en what is red", "<image>what"]
    return lens.processor(images=images, text=prompts, suffix=suffix, padding=True, return_tensors="pt")


def test_its_own_processor(lens, inputs):
    assert inputs.modality.names == ("text", "image", "pad")
    report = lens.check(inputs)
    assert report.agrees and report.max_logit_difference < 1e-4
    _, cache = lens.run_with_cache(inputs)
    image = inputs.modality.image_positions()
    for layer in range(3):
        first = cache["pattern", layer][0, :, image[0]]
        assert bool((first > 0).all()), "the first position sees the last, in layers with a window too"


def test_an_answer_is_causal(lens, inputs):
    answer = lens.generate(inputs, max_new_tokens=4)
    expected = lens.hf_model.generate(**inputs.model_inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(answer.tokens, expected[:, inputs.shape[1] :][:, : answer.tokens.shape[1]])
    given = lens.with_answer(inputs, ["red red blue", "two one two"])
    assert lens.check(given.inputs).agrees
    _, cache = lens.run_with_cache(given.inputs)
    start = inputs.shape[1]
    for layer in range(3):
        assert not bool(cache["pattern", layer][:, :, start, start + 1 :].any())
        assert not bool(cache["pattern", layer][:, :, :start, start:].any()), "the prompt does not see its answer"


def test_a_suffix_is_an_answer(lens):
    given = processed(lens, ["red red blue", "two"])
    inputs = lens.encode(given)
    is_answer = (given["token_type_ids"] == 1) & given["attention_mask"].bool()
    assert torch.equal(inputs.modality.mask("generated"), is_answer) and is_answer.sum(1).tolist() == [4, 3]
    reference = reference_logits(lens.hf_model, {name: given[name] for name in given if name != "labels"})
    assert largest_difference(lens.model(inputs), reference, inputs.attention_mask) < 1e-4
    _, cache = lens.run_with_cache(inputs)
    for query in (-1, -2, -6):
        heads = analysis.head_specialization(cache, inputs.modality, query=query)
        seen = cache["pattern", 1][0, :, query].amax(0) > 0
        image = inputs.modality.mask("image")[0] & (torch.arange(len(seen)) > int(seen.int().argmax()))
        chance = float(heads.chance[0, 1, heads.modalities.index("image")])
        assert chance == pytest.approx(float((seen & image).sum() / seen.sum()))


@pytest.mark.parametrize("version", VERSIONS)
def test_words_alone(version):
    """No mask means to SDPA that everything is seen; eager attention, which soft caps need, is given one."""
    lens = wrapped(version)
    tokens = torch.arange(3, 23)[None]
    given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    _, cache = lens.run_with_cache(lens.encode(given))
    assert largest_difference(lens.model(tokens), reference_logits(lens.hf_model, given)) < 1e-4
    assert bool((cache["pattern", 0][..., 0, 1:] > 0).any()) == (version == 1)


def test_soft_caps_bound_scores_and_their_rows():
    lens = wrapped(2)
    inputs = lens.encode(processed(lens))
    _, whole = lens.run_with_cache(inputs, names_filter=lambda name: "attn_scores" in name or "pattern" in name)
    _, rows = lens.run_with_cache(inputs, query_positions=[-1])
    scores, real = whole["attn_scores", 0][:, :, -1], inputs.attention_mask.bool()
    assert 2.0 < float(scores[scores.isfinite()].abs().max()) < 3.0
    for layer in range(3):
        torch.testing.assert_close(
            rows["pattern", layer][:, :, 0], whole["pattern", layer][:, :, -1], atol=1e-5, rtol=0
        )
    hidden = Knockout("image", to="last", layers=[1])
    with lens.intervene(hidden):
        patterns, _ = lens.run_with_cache(inputs)
        fast, _ = lens.run_with_cache(inputs, query_positions=[])
    torch.testing.assert_close(fast[real], patterns[real], atol=1e-4, rtol=0)
    assert largest_difference(patterns, lens.model(inputs), inputs.attention_mask) > 0.01


@pytest.mark.parametrize("version", VERSIONS)
def test_bfloat16(version):
    model = paligemma(version).to(torch.bfloat16)
    given = paligemma_prompts(20, 13)
    given["pixel_values"] = given["pixel_values"].to(torch.bfloat16)
    half = lensplug.wrap(model)
    report = half.check(half.encode(given))
    assert report.agrees and report.argmax_agreement > 0.9
