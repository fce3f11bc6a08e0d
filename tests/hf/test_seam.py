"""The full model runs up to its decoder and no further, and nothing is left on it."""

from __future__ import annotations

import pytest
import torch
from support.models import (
    IMAGE_FAMILIES,
    largest_difference,
    llava,
    processed,
    reference_logits,
    text_model,
    text_tokens,
    wrapped_logits,
)
from torch import nn

import lensplug
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.seam import run_to_seam


def hooks_on(model: nn.Module) -> int:
    """Every hook on every module of a model."""
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) + len(module._backward_hooks)
        for module in model.modules()
    )


@pytest.fixture
def llava_and_inputs():
    """After one pass: on the first, transformers itself leaves hooks that collect the tower's hidden states."""
    model, processor = llava()
    model_inputs = processed(processor, (60, 44))
    reference_logits(model, model_inputs)
    return model, model_inputs


@pytest.fixture
def text_lens():
    return lensplug.wrap(text_model("Qwen2"))


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
def test_keeps_what_the_decoder_receives(name):
    """The same tensor as in a full pass, where a hook of the test's own looks at it."""
    model, model_inputs = IMAGE_FAMILIES[name]()
    received = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: received.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    reference_logits(model, model_inputs)
    handle.remove()
    seam = run_to_seam(model, LanguageCore.of(model), model_inputs)
    assert torch.equal(seam.embeds, received[0]) and not seam.embeds.requires_grad
    assert torch.equal(seam.attention_mask, model_inputs["attention_mask"])


def test_decoder_layers_run_zero_times(llava_and_inputs):
    model, model_inputs = llava_and_inputs
    lens = lensplug.wrap(model)
    before = hooks_on(model)
    runs = {"layer": 0, "tower": 0}

    def counting(what):
        def count(*_):
            runs[what] += 1

        return count

    handles = [layer.register_forward_hook(counting("layer")) for layer in model.get_decoder().layers]
    handles.append(model.model.vision_tower.register_forward_hook(counting("tower")))
    lens.encode(model_inputs)
    assert runs == {"layer": 0, "tower": 1}
    reference_logits(model, model_inputs)
    assert runs == {"layer": 3, "tower": 2}, "the counting itself must work"
    for handle in handles:
        handle.remove()
    assert hooks_on(model) == before and hooks_on(model.get_decoder()) == 0


def test_leaves_no_hook_when_the_model_refuses(llava_and_inputs):
    model, model_inputs = llava_and_inputs
    before = hooks_on(model)
    too_many = model_inputs["input_ids"].clone()
    too_many[0, :5] = model.config.image_token_id
    too_few = {name: model_inputs[name][:, 8:] for name in ("input_ids", "attention_mask")}  # six words, two places
    for broken in ({**model_inputs, "input_ids": too_many}, {**model_inputs, **too_few}):
        with pytest.raises(lensplug.LensplugError, match="LlavaForConditionalGeneration refused.*tokens"):
            run_to_seam(model, LanguageCore.of(model), broken)
        assert hooks_on(model) == before


def test_passes_a_foreign_exception_through_and_leaves_no_hook(llava_and_inputs):
    model, model_inputs = llava_and_inputs
    before = hooks_on(model)

    class Boom(Exception):
        pass

    def raise_boom(*_):
        raise Boom

    handle = model.model.vision_tower.register_forward_hook(raise_boom)
    with pytest.raises(Boom):
        run_to_seam(model, LanguageCore.of(model), model_inputs)
    handle.remove()
    assert hooks_on(model) == before


def test_a_model_that_never_calls_its_decoder():
    model = text_model("Llama")
    core = LanguageCore.of(model)
    model.forward = lambda **kwargs: None
    with pytest.raises(lensplug.LensplugError, match="LlamaForCausalLM never called its decoder"):
        run_to_seam(model, core, {"input_ids": text_tokens()})
    assert hooks_on(model) == 0


def test_a_plain_language_model_has_the_embeddings_of_its_tokens(text_lens):
    tokens = text_tokens(12, batch=2)
    inputs = text_lens.encode({"input_ids": tokens})
    assert torch.equal(inputs.embeds, text_lens.hf_model.model.embed_tokens(tokens))
    assert inputs.attention_mask.all()


def test_positions_that_start_elsewhere_are_the_same(text_lens):
    """Rotary attention sees differences only."""
    tokens = text_tokens(12)
    model_inputs = {"input_ids": tokens, "position_ids": torch.arange(12)[None] + 7}
    reference = reference_logits(text_lens.hf_model, model_inputs)
    assert largest_difference(wrapped_logits(text_lens, text_lens.encode(model_inputs)), reference) < 1e-4


LONG = torch.arange(12)[None]
REFUSED: dict[str, dict[str, object]] = {
    r"attention mask of its own \(\[1, 1, 12, 12\]\)": {"attention_mask": torch.zeros(1, 1, 12, 12)},
    "not counted one by one": {"position_ids": 2 * LONG},
    r"positions have the shape \[3, 1, 12\]": {"position_ids": LONG.expand(3, 1, 12)},
    "mask with holes": {"attention_mask": (LONG != 5).long()},
    "example 0 is nothing but padding": {"attention_mask": torch.zeros_like(LONG)},
    r"more than embeddings \(is_causal\)": {"is_causal": False},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refuses_what_a_causal_core_cannot_take(text_lens, message):
    with pytest.raises(lensplug.LensplugError, match=message):
        text_lens.encode({"input_ids": text_tokens(12), **REFUSED[message]})
    assert hooks_on(text_lens.hf_model) == 0


def test_what_a_decoder_never_reads_is_no_reason(text_lens):
    """It ends in `**kwargs`; but what attention reads out of them does matter, unless it is what it does anyway."""
    model_inputs = {"input_ids": text_tokens(12)}
    reference = reference_logits(text_lens.hf_model, model_inputs)
    for unread in ({"image_sizes": torch.tensor([[32, 32]])}, {"is_causal": True}):
        assert torch.equal(reference_logits(text_lens.hf_model, {**model_inputs, **unread}), reference)
        assert torch.equal(text_lens.encode({**model_inputs, **unread}).embeds, text_lens.encode(model_inputs).embeds)
    assert largest_difference(reference_logits(text_lens.hf_model, {**model_inputs, "is_causal": False}), reference) > 1
    assert hooks_on(text_lens.hf_model) == 0


def test_what_a_decoder_names_is_read(text_lens, monkeypatch):
    """Whatever it does this time: it is not run to find out."""
    decoder = type(text_lens.core.decoder)
    old = decoder.forward

    def forward(self, *args, picture=None, **kwargs):
        return old(self, *args, **kwargs)

    monkeypatch.setattr(decoder, "forward", forward)
    with pytest.raises(lensplug.LensplugError, match=r"more than embeddings \(picture\)"):
        text_lens.encode({"input_ids": text_tokens(12), "picture": LONG})


def test_refuses_a_bidirectional_mask_made_by_the_model(text_lens):
    """A model that gives its decoder a mask for each layer type, as those with prefix attention do."""
    model = text_lens.hf_model
    old = model.forward

    def forward(input_ids, **kwargs):
        return model.model(inputs_embeds=model.model.embed_tokens(input_ids), attention_mask={"full_attention": None})

    model.forward = forward
    try:
        with pytest.raises(lensplug.LensplugError, match="mask of its own .dict.*not plainly causal"):
            text_lens.encode({"input_ids": text_tokens()})
    finally:
        model.forward = old
