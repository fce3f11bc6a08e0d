"""The check agrees where both compute the same, and says where they part when they do not."""

from __future__ import annotations

import pytest
import torch
from support.built import HOOKED, ONLY_HOOKED
from support.models import IMAGE_FAMILIES, largest_difference, reference_logits, text_model, text_tokens, wrapped_logits

import lensplug
from lensplug.hf.attention_choice import sdpa
from lensplug.running import parity


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
    largest = float(reference.abs().max())  # of a long prompt not every position is compared
    every = report.compared == report.positions
    assert report.logit_scale == pytest.approx(largest) if every else report.logit_scale <= largest * (1 + 1e-6)
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


LONG = 300


@pytest.fixture(scope="module")
def long_lens():
    return lensplug.wrap(text_model("Qwen2"))


@pytest.fixture
def long_inputs(long_lens):
    """Two prompts, one padded at the left; more positions than have their logits compared."""
    mask = torch.ones(2, LONG, dtype=torch.long)
    mask[1, :77] = 0
    return long_lens.encode({"input_ids": text_tokens(LONG, 2), "attention_mask": mask})


def test_of_a_long_prompt_some_logits_are_compared(long_lens, long_inputs):
    report = long_lens.check(long_inputs)
    assert report.agrees and report.positions == 2 * LONG - 77
    assert report.compared == 2 * parity.ROWS
    assert f"of {report.compared} positions" in str(report) and f"at {report.positions} positions" in str(report)
    whole = long_lens.check(long_inputs, whole_patterns=True)
    assert whole.agrees and whole.compared == report.compared


@pytest.mark.parametrize("place", [78, 141, 298])
def test_one_wrong_position_of_many_is_found(long_lens, long_inputs, place):
    """In the last layer nothing else is touched: the largest difference is that of its own logits."""

    def edit(resid, hook):
        resid[1, place] += 0.5 * resid[0, place]
        return resid

    hooks = [("blocks.2.hook_resid_post", edit)]
    expected = (long_lens.run_with_hooks(long_inputs, fwd_hooks=hooks) - wrapped_logits(long_lens, long_inputs))[
        1, place
    ]
    with long_lens.model.hooks(fwd_hooks=hooks):
        report = long_lens.check(long_inputs)
    assert not report.agrees and report.first_divergent_layer == 2
    assert report.max_logit_difference == pytest.approx(float(expected.detach().abs().max()), abs=1e-3)


def test_one_position_that_is_not_finite_among_many(long_lens, long_inputs):
    """Its example is lost, also before it (a weight of zero times NaN is NaN); each position is counted."""

    def lose(resid, hook):
        resid[1, 141] = torch.nan
        return resid

    with long_lens.model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lose)]):
        report = long_lens.check(long_inputs)
        logits = long_lens.model(long_inputs)
    assert not report.agrees and report.first_divergent_layer == 0
    assert report.not_finite == int((~logits[long_inputs.attention_mask.bool()].isfinite()).sum()) >= (LONG - 141) * 320


def test_a_hook_on_patterns_is_shown_whole_ones(long_lens, long_inputs):
    seen = []
    hooks = [("blocks.1.attn.hook_pattern", lambda pattern, hook: seen.append(tuple(pattern.shape)))]
    with long_lens.model.hooks(fwd_hooks=hooks):
        assert long_lens.check(long_inputs).agrees
    assert seen == [(2, 4, LONG, LONG)]


@pytest.mark.parametrize("engine", ["hooked_transformer", "bridge"])
@pytest.mark.parametrize(("size", "heads"), [(70.0, 0), (120.0, 2)])
def test_scores_beyond_float16_are_counted_by_head(engine, size, heads):
    """Scores of 8 x 70^2 = 39,200 are within the range of float16 (65,504), of 8 x 120^2 = 115,200 beyond."""
    if engine == "hooked_transformer" and not HOOKED:
        pytest.skip(ONLY_HOOKED)
    model = text_model("Qwen2")
    with torch.no_grad():
        for layer in (0, 2):  # one query head of each
            model.model.layers[layer].self_attn.q_proj.bias[8:16] = size
            model.model.layers[layer].self_attn.k_proj.bias[:8] = size
            for projection in ("q_proj", "k_proj"):
                getattr(model.model.layers[layer].self_attn, projection).weight[:16] *= 0.01
    lens = lensplug.wrap(model.half(), engine=engine, check=False)
    report = lens.check(lens.encode({"input_ids": text_tokens(20, 2)}))
    assert report.overflowing_heads == heads and report.agrees == (heads == 0)
    assert (f"scores of {heads} heads overflow in float16" in str(report)) == (heads > 0)


def test_logits_that_both_models_forbid_are_not_compared():
    least = torch.finfo(torch.float32).min
    reference, wrapped = torch.tensor([[1.0, least, -3.0]]), torch.tensor([[1.0, least, -3.5]])
    assert parity._largest_allowed(reference, wrapped, least) == 3.0
    assert (reference - wrapped).abs().max() == 0.5
    reference, wrapped = torch.tensor([[1.0, least, -3.0]]), torch.tensor([[1.0, 2.0, -3.0]])
    assert parity._largest_allowed(reference, wrapped, least) == 3.0
    assert (reference - wrapped).abs().max() > 1e38  # of one only: the models differ
