"""Granite's four multipliers: what is read of the stream is what the model adds to it, and logits are its logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from support.cores import MULTIPLIERS, llava_over
from support.models import SMALL, largest_difference, randomise, text_tokens

import lensplug
from lensplug import analysis


@pytest.fixture
def lens():
    return lensplug.wrap(randomise(hf.GraniteForCausalLM(hf.GraniteConfig(**SMALL, **MULTIPLIERS))), prove=True)


@pytest.fixture
def inputs(lens):
    tokens = text_tokens(12)
    return lens.encode({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})


def test_parts_sum_to_the_stream_and_to_the_logit(lens, inputs):
    logits, cache = lens.run_with_cache(inputs)
    torch.testing.assert_close(cache["hook_embed"], 3.0 * inputs.embeds)
    torch.testing.assert_close(cache["hook_embed"], cache["resid_pre", 0])
    parts = cache.decompose_resid()
    torch.testing.assert_close(parts.sum(0), cache["resid_post", -1], atol=1e-4, rtol=1e-4)
    attributed = cache.logit_attrs(parts, tokens=5).sum(0)
    torch.testing.assert_close(attributed, logits[..., 5], atol=1e-4, rtol=1e-4)
    result = analysis.logit_lens(cache, positions=-1, target=5)
    expected = logits[:, -1].log_softmax(-1)[:, 5]
    torch.testing.assert_close(result.log_probability[:, -1, 0], expected, atol=1e-4, rtol=1e-4)


def test_an_edit_of_the_embedding_is_one_of_the_stream(lens, inputs):
    def edited(value, hook):
        value[:, 3] = 1.0
        return value

    with torch.no_grad():
        found = lens.model.run_with_hooks(inputs, fwd_hooks=[("hook_embed", edited)])
        expected = lens.model.run_with_hooks(inputs, fwd_hooks=[("blocks.0.hook_resid_pre", edited)])
        whole = lens.model(inputs)
    assert largest_difference(found, expected) < 1e-4
    assert largest_difference(found, whole) > 0.1


@pytest.mark.parametrize("core", ["granite", "cohere2"])
def test_whether_logits_are_multiplied_is_asked_of_the_model(core):
    """A tested core too: LLaVA leaves its head's output as it is, a language model of the same core does not."""
    asked = lensplug.wrap(llava_over(core)).core.asked
    assert asked is not None and asked.logit_scale == 1
    kinds = {"granite": (hf.GraniteConfig, hf.GraniteForCausalLM), "cohere2": (hf.Cohere2Config, hf.Cohere2ForCausalLM)}
    config, kind = kinds[core]
    numbers = MULTIPLIERS if core == "granite" else {"logit_scale": 0.3, "head_dim": 8}
    lens: Any = lensplug.wrap(randomise(kind(config(**SMALL, **numbers))))
    assert lens.core.asked.logit_scale == pytest.approx(1 / 2.5 if core == "granite" else 0.3)
    tokens = text_tokens(12)
    with torch.no_grad():
        assert largest_difference(lens.model(tokens), lens.hf_model(tokens).logits) < 1e-4
