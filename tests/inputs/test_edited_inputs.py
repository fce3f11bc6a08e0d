"""Variants of inputs against Hugging Face on prompts that were written so, also for cores that are given more."""

from __future__ import annotations

from dataclasses import replace
from functools import cache as once

import pytest
import torch
from support.beside import FAMILIES, given_of, wrapped
from support.models import largest_difference, llava_onevision, reference_logits, scene

import lensplug
from lensplug import LensplugError, analysis
from lensplug.analysis.interventions import ablation_run
from lensplug.analysis.interventions.ablation_run import AblationRun, Example
from lensplug.inputs.edited_inputs import in_place
from lensplug.patches.decoder_inputs import KINDS


@once
def llava():
    """A lens and two prompts whose core is given embeddings and padding alone."""
    lens = lensplug.wrap(*llava_onevision())
    texts = ["<image>\nWhat is the color?", "<image>\nWhat is the color and the shape?"]
    images = [[scene(40, 40, 1)], [scene(40, 40, 2)]]
    return lens, dict(lens.processor(text=texts, images=images, padding=True, return_tensors="pt"))


@pytest.fixture(params=[*FAMILIES, "llava-onevision"])
def case(request):
    """A lens, and two prompts of different lengths, padded at the left, with an image each."""
    return (wrapped(request.param), given_of(request.param)) if request.param in FAMILIES else llava()


@pytest.fixture
def lens(case):
    return case[0]


@pytest.fixture
def given(case):
    return case[1]


@pytest.fixture
def inputs(lens, given):
    return lens.encode(given)


def rows_without(given, gone, example):
    """One prompt without some positions, and without padding: what a user would have written."""
    kept = given["attention_mask"][example].bool() & ~gone[example]
    by_position = {name: value for name, value in given.items() if value.shape == gone.shape}
    return {name: value[example][kept][None] for name, value in by_position.items()}


def test_examples_in_any_order_and_number(lens, given, inputs):
    examples = torch.tensor([1, 0, 1, 1])
    reference = reference_logits(lens.hf_model, given)
    with torch.no_grad():
        logits = lens.model(in_place(inputs, inputs.embeds[examples], examples))
        same = lens.model(in_place(inputs, inputs.embeds))
    assert largest_difference(logits, reference[examples], inputs.attention_mask[examples]) < 1e-4
    assert largest_difference(same, reference, inputs.attention_mask) < 1e-4


def test_without_the_image_it_is_the_prompt_without_it(lens, given, inputs):
    gone = inputs.modality.mask("image")
    variant = lens.without(inputs, gone)
    with torch.no_grad():
        logits = lens.model(variant)
    whole = reference_logits(lens.hf_model, given)
    for example in range(2):
        reference = reference_logits(lens.hf_model, rows_without(given, gone, example))
        length = reference.shape[1]
        assert int(variant.attention_mask[example].sum()) == length
        assert largest_difference(logits[example : example + 1, -length:], reference) < 1e-4
        assert largest_difference(whole[example : example + 1, -1:], reference[:, -1:]) > 0.1, "the image matters"


def test_without_some_words_the_image_stays(lens, given, inputs):
    gone = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
    words = inputs.modality.mask("text")
    gone[0, words[0].nonzero()[:3, 0]] = True
    gone[1, words[1].nonzero()[-4:-1, 0]] = True
    with torch.no_grad():
        logits = lens.model(lens.without(inputs, gone))
    for example in range(2):
        media = {name: value for name, value in given.items() if value.shape != gone.shape}
        halves = {name: value[example * (len(value) // 2) :][: len(value) // 2] for name, value in media.items()}
        reference = reference_logits(lens.hf_model, {**rows_without(given, gone, example), **halves})
        assert largest_difference(logits[example : example + 1, -reference.shape[1] :], reference) < 1e-4


def test_a_part_of_an_image_is_refused_where_the_model_must_be_asked(lens, inputs):
    part = inputs.modality.mask("image").clone()
    part[0, part[0].nonzero()[0]] = False
    if not lens.core.beside:
        kept = lens.without(inputs, part).attention_mask.sum(1)
        assert torch.equal(kept, (inputs.attention_mask.bool() & ~part).sum(1))
    else:
        with pytest.raises(LensplugError, match=f"some positions of image .*{' and '.join(lens.core.beside)}"):
            lens.without(inputs, part)


def test_something_must_be_left(lens, inputs):
    gone = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
    gone[1] = True
    with pytest.raises(LensplugError, match="nothing is left of example 1"):
        lens.without(inputs, gone)


def hidden_in(mask, gone):
    """A mask of true and false, or one that is added to scores, without some keys."""
    keys = gone[:, None, None]
    return mask & ~keys if mask.dtype == torch.bool else mask.masked_fill(keys, torch.finfo(mask.dtype).min)


def hidden_in_the_decoder(lens, inputs, gone):
    """Logits with the image hidden and its embeddings their mean, from Hugging Face's decoder."""
    mean = torch.stack([row[own].mean(0) for row, own in zip(inputs.embeds, gone, strict=True)])
    embeds = torch.where(gone[..., None], mean[:, None], inputs.embeds)
    beside, seen = dict(inputs.decoder_inputs), inputs.attention_mask.bool() & ~gone
    masks, added = beside.get("attention_mask"), beside.pop("deepstack", None)
    if added is not None:  # as Hugging Face gives them, here of every position
        beside |= {"visual_pos_masks": torch.ones_like(gone), "deepstack_visual_embeds": list(added.flatten(1, 2))}
    if masks is None:
        length = seen.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.where(causal & seen[:, None, None], 0.0, torch.finfo(torch.float32).min)
        beside["attention_mask"] = mask
        beside.setdefault("position_ids", (inputs.attention_mask.cumsum(1) - 1).clamp(min=0))
    elif isinstance(masks, dict):
        beside["attention_mask"] = {kind: hidden_in(mask, gone) for kind, mask in masks.items()}
    else:
        beside["attention_mask"] = hidden_in(masks, gone)
    with torch.no_grad():
        logits = lens.core.head(lens.core.decoder(inputs_embeds=embeds, use_cache=False, **beside).last_hidden_state)
    cap = getattr(lens.core.text_config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def test_the_deletion_of_all_is_hugging_faces_with_all_hidden(lens, given, inputs):
    image = inputs.modality.mask("image")
    curve = analysis.deletion_curve(lens, inputs, torch.rand(image.shape), 5, steps=2, draws=1)
    reference = reference_logits(lens.hf_model, given)[:, -1].log_softmax(-1)[:, 5]
    hidden = hidden_in_the_decoder(lens, inputs, image)[:, -1].log_softmax(-1)[:, 5]
    for whole in (curve.most_first, curve.least_first, curve.random[:, 0]):
        torch.testing.assert_close(whole[:, 0], reference, atol=1e-4, rtol=0)
        torch.testing.assert_close(whole[:, -1], hidden, atol=1e-4, rtol=0)
    assert float((hidden - reference).abs().max()) > 0.1


def test_one_prompt_has_variants_as_two_have(lens, given):
    """What a core is given of one prompt is of that prompt, and not of every example that runs."""
    each = {name: len(value) // 2 for name, value in given.items()}
    one = lens.encode({name: value[each[name] :] for name, value in given.items()})
    examples = torch.zeros(3, dtype=torch.long)
    variant = in_place(one, one.embeds[examples], examples)
    for name, value in variant.decoder_inputs.items():
        for held in value.values() if isinstance(value, dict) else [value]:
            assert held.shape[KINDS[name].example] == 3, "as many as the examples that run"
    words = one.modality.mask("text")
    curve = analysis.deletion_curve(lens, one, torch.rand(words.shape), 5, among="text", steps=2, draws=1)
    hidden = hidden_in_the_decoder(lens, one, words & one.attention_mask.bool())[:, -1].log_softmax(-1)[:, 5]
    for whole in (curve.most_first, curve.least_first, curve.random[:, 0]):
        torch.testing.assert_close(whole[:, -1], hidden, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["remove", "zero", "mean", "noise"])
def test_ablation_of_the_image(lens, given, inputs, method, monkeypatch):
    examples = [Example(f"{index}", "a") for index in range(2)]
    run = AblationRun(lens, examples, "image", method, torch.Generator().manual_seed(0), 2, lambda doing: None)
    spoken = replace(inputs.modality, user_words=inputs.modality.mask("text"))
    written = replace(inputs, modality=spoken)
    monkeypatch.setattr(ablation_run, "prepared", lambda lens, examples: written)
    scores = run.outcome([(5,), (6,)]).scores[:, [0, 1], [0, 1]]  # of each example's own answer
    reference = reference_logits(lens.hf_model, given)[:, -1].log_softmax(-1)
    torch.testing.assert_close(scores[0], reference[[0, 1], [5, 6]], atol=1e-4, rtol=0)
    if method == "remove":
        gone = inputs.modality.mask("image")
        alone = [reference_logits(lens.hf_model, rows_without(given, gone, example))[0, -1] for example in range(2)]
        expected = torch.stack(alone).log_softmax(-1)[[0, 1], [5, 6]]
        torch.testing.assert_close(scores[1], expected, atol=1e-4, rtol=0)
    assert float((scores[1:] - scores[:1]).abs().min()) > 1e-3
