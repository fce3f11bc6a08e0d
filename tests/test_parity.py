"""The check agrees where both compute the same, and says where they part when they do not."""

from __future__ import annotations

import pytest
import torch
from models import IMAGE_FAMILIES, largest_difference, reference_logits, text_model, text_tokens, wrapped_logits

import lensplug
from lensplug import parity
from lensplug.parity import sdpa


@pytest.fixture
def text_lens():
    """A lens of its own, to be broken; with processed weights it has a copy to break."""
    return lensplug.wrap(text_model("Qwen2"), process_weights=True)


@pytest.fixture
def text_inputs(text_lens):
    return text_lens.encode({"input_ids": text_tokens(20, batch=2)})


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
def test_agrees_and_reports_what_was_measured(name):
    model, model_inputs = IMAGE_FAMILIES[name]()
    lens = lensplug.wrap(model)
    inputs = lens.encode(model_inputs)
    report = lens.check(inputs)
    reference = reference_logits(model, model_inputs)
    assert report.agrees and report.not_finite == 0 and report.first_divergent_layer is None
    assert report.argmax_agreement == 1 and report.positions == inputs.tokens.numel()
    assert report.logit_scale == pytest.approx(float(reference.abs().max()))
    measured = largest_difference(wrapped_logits(lens, inputs), reference)
    assert report.max_logit_difference == pytest.approx(measured, abs=1e-5)
    assert "agrees with" in str(report) and type(model).__name__ in str(report)


def test_padding_does_not_count(lens, batch):
    report = lens.check(batch)
    assert report.agrees and report.positions == int(batch.attention_mask.sum()) < batch.tokens.numel()


def test_processed_weights_are_compared_centred(text_lens, text_inputs):
    assert text_lens.check(text_inputs).agrees


@pytest.mark.parametrize("layer", [0, 2])
def test_finds_the_layer_where_they_part(text_lens, text_inputs, layer):
    with torch.no_grad():
        text_lens.model.blocks[layer].mlp.W_out.mul_(1.05)
    report = text_lens.check(text_inputs)
    assert not report.agrees and report.first_divergent_layer == layer
    assert report.argmax_agreement < 1 or report.max_logit_difference > 0.01
    assert "DIFFERS from" in str(report) and f"they part at layer {layer}" in str(report)


def test_a_wrong_unembedding_parts_at_no_layer(text_lens, text_inputs):
    with torch.no_grad():
        text_lens.model.unembed.W_U.mul_(1.05)
    report = text_lens.check(text_inputs)
    assert not report.agrees and report.first_divergent_layer is None


def test_counts_what_is_not_finite(text_lens, text_inputs):
    text_lens.model.add_hook("blocks.1.hook_mlp_out", lambda value, hook: value * torch.nan)
    report = text_lens.check(text_inputs)
    text_lens.model.reset_hooks()
    assert not report.agrees and report.first_divergent_layer == 1
    assert report.not_finite == 20 * 2 * 320 and report.max_logit_difference == float("inf")


def test_bfloat16_is_allowed_what_it_costs():
    lens = lensplug.wrap(text_model("Llama").bfloat16())
    report = lens.check(lens.encode({"input_ids": text_tokens(20)}))
    assert report.agrees and report.dtype == "bfloat16"
    assert report.tolerance == pytest.approx(0.1 * report.logit_scale)


def test_float64_agrees_as_far_as_hugging_face_goes():
    """Its norms are in single precision also in a double model; test_core compares in double throughout."""
    lens = lensplug.wrap(text_model("Llama").double())
    report = lens.check(lens.encode({"input_ids": text_tokens(20)}))
    assert report.agrees and report.dtype == "float64" and report.max_logit_difference < 1e-4


def test_the_reference_attends_by_sdpa_whatever_the_model_is_set_to(text_lens, text_inputs):
    config = text_lens.core.decoder.config
    config._attn_implementation = "eager"
    seen = []
    handle = text_lens.core.decoder.register_forward_pre_hook(lambda *_: seen.append(config._attn_implementation))
    text_lens.check(text_inputs)
    handle.remove()
    assert set(seen) == {"sdpa"} and config._attn_implementation == "eager"
    with pytest.raises(KeyError), sdpa(text_lens.core):
        raise KeyError
    assert config._attn_implementation == "eager"


def test_leaves_no_hook_behind_when_it_looks_for_the_layer(text_lens, text_inputs):
    with torch.no_grad():
        text_lens.model.blocks[0].mlp.W_out.mul_(1.05)
    text_lens.check(text_inputs)
    assert not any(layer._forward_hooks for layer in text_lens.core.decoder.layers)
    assert not any(point._forward_hooks for point in text_lens.model.hook_dict.values())


def test_tolerances_are_a_fraction_of_the_largest_logit():
    assert parity.TOLERANCE[torch.float32] == 1e-4 and parity.TOLERANCE[torch.bfloat16] == 0.1
