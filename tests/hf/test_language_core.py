"""The wrapped core gives Hugging Face's own logits, and what cannot be wrapped exactly is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from support.built import HOOKED, ONLY_HOOKED
from support.models import (
    IMAGE_FAMILIES,
    TEXT_CORES,
    largest_difference,
    llava,
    llava_next,
    llava_onevision,
    randomise,
    reference_logits,
    text_config,
    text_model,
    text_tokens,
    wrapped_logits,
)
from torch import nn

import lensplug
from lensplug.hf.language_core import LanguageCore
from lensplug.lens import MultimodalLens

LEFT_AND_RIGHT = torch.tensor([[0] * 5 + [1] * 19, [1] * 24, [1] * 17 + [0] * 7])


@pytest.mark.parametrize("name", TEXT_CORES)
def test_text_cores(name):
    model = text_model(name)
    lens = lensplug.wrap(model)
    tokens = text_tokens(24, batch=3)
    for mask in (torch.ones_like(tokens), LEFT_AND_RIGHT):
        inputs = lens.encode({"input_ids": tokens, "attention_mask": mask})
        reference = reference_logits(model, {"input_ids": tokens, "attention_mask": mask})
        assert largest_difference(wrapped_logits(lens, inputs), reference, mask) < 1e-4
    whole = reference_logits(model, {"input_ids": tokens})
    assert largest_difference(wrapped_logits(lens, tokens), whole) < 1e-4


@pytest.mark.skipif(not HOOKED, reason=ONLY_HOOKED)
@pytest.mark.parametrize("name", TEXT_CORES)
def test_text_cores_in_double_precision(name, monkeypatch):
    """With Hugging Face's norms in double, too, nothing but rounding is left, and it is tiny.

    Not in a bridge, whose softmax is in single precision always.
    """

    def norm_in_double(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    model = text_model(name).double()
    monkeypatch.setattr(type(model.model.norm), "forward", norm_in_double)
    tokens = text_tokens(24, batch=2)
    reference = reference_logits(model, {"input_ids": tokens})
    lens = lensplug.wrap(model, engine="hooked_transformer")
    assert largest_difference(wrapped_logits(lens, tokens), reference) < 1e-11


@pytest.mark.parametrize("name", TEXT_CORES)
def test_attention_of_the_random_models_is_not_flat(name):
    """Where it were, a wrong rotation or mask would hardly move a logit."""
    lens = lensplug.wrap(text_model(name))
    _, cache = lens.model.run_with_cache(text_tokens(24))
    largest = torch.stack([cache["pattern", layer][:, :, -1].amax(-1) for layer in range(lens.model.cfg.n_layers)])
    assert float(largest.mean()) > 3 / 24


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
def test_image_families(name):
    model, model_inputs = IMAGE_FAMILIES[name]()
    lens = lensplug.wrap(model)
    inputs = lens.encode(model_inputs)
    reference = reference_logits(model, model_inputs)
    assert inputs.modality.mask("image").sum() > 3
    assert largest_difference(wrapped_logits(lens, inputs), reference) < 1e-4
    other = reference_logits(model, {**model_inputs, "pixel_values": -model_inputs["pixel_values"]})
    assert largest_difference(reference, other) > 0.1, "the image must matter"


def test_window_smaller_than_the_prompt_matters():
    windowed, plain = (text_model("Mistral", sliding_window=window) for window in (6, None))
    tokens = text_tokens(24)
    assert largest_difference(*(reference_logits(m, {"input_ids": tokens}) for m in (windowed, plain))) > 0.1


def test_longer_than_the_first_rotary_table():
    """TransformerLens makes rotations for 2,048 positions and more on demand; real images need more."""
    model = text_model("Llama", max_position_embeddings=4096, num_hidden_layers=1)
    tokens = text_tokens(2200)
    reference = reference_logits(model, {"input_ids": tokens})
    assert largest_difference(wrapped_logits(lensplug.wrap(model), tokens), reference) < 1e-4


@pytest.mark.parametrize("name", ["llama-tied", "qwen2", "mistral-window", "qwen3"])
def test_bfloat16(name):
    """About as far from single precision as Hugging Face's own bfloat16, which rounds no scores: the mean square of
    thousands of roundings is much the same in whatever order a processor adds up."""
    model = text_model(name).bfloat16()
    tokens = text_tokens(48, batch=2)
    wrapped = wrapped_logits(lensplug.wrap(model), tokens).float()
    reference = reference_logits(model, {"input_ids": tokens}).float()
    exact = reference_logits(model.float(), {"input_ids": tokens})
    off, own = ((logits - exact).square().mean().sqrt() for logits in (wrapped, reference))
    assert 0 < float(off) < 2 * float(own) < 0.1 * float(exact.std())


@pytest.mark.parametrize("build", [llava_onevision, llava, llava_next])
def test_parts_are_those_of_the_full_model(build):
    model, processor = build()
    core = LanguageCore.of(model)
    assert core.decoder is model.model.language_model and core.head is model.lm_head
    assert core.text_config is model.config.text_config
    assert core.d_model == model.config.text_config.hidden_size
    assert (core.dtype, core.device.type) == (torch.float32, "cpu")
    assert core.placeholder_ids["image"] == processor.tokenizer.convert_tokens_to_ids("<image>")


def test_tied_head_needs_no_special_case():
    model = text_model("llama-tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    wrapped = lensplug.wrap(model).model
    assert wrapped.W_U.data_ptr() == wrapped.W_E.data_ptr() == model.lm_head.weight.data_ptr()


BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
NO_SEAM = {
    "Linear has no get_decoder": lambda: nn.Linear(2, 2),
    "BertModel does not generate text": lambda: hf.BertModel(hf.BertConfig(**BERT)),
    "BertForMaskedLM does not generate text": lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)),
    "LlamaModel has no head.*LlamaForCausalLM.from_pretrained": lambda: text_model("Llama").model,
    "LlavaOnevisionModel has no output.*OnevisionForConditionalGeneration": lambda: llava_onevision()[0].model,
    "SiglipVisionModel does not generate text": lambda: llava_onevision()[0].model.vision_tower,
    "LlamaForSequenceClassification has no output": lambda: hf.LlamaForSequenceClassification(text_config("Llama")),
}


@pytest.mark.parametrize("message", NO_SEAM)
def test_refuses_a_model_without_the_seam(message):
    with pytest.raises(lensplug.LensplugError, match=message):
        lensplug.wrap(NO_SEAM[message]().eval())


def _other_head(model):
    model.lm_head = nn.Identity()


WEIGHTS = {
    "more than one dtype.*float16.*float32": lambda model: model.model.layers[1].mlp.half(),
    "meta device": lambda model: model.to("meta"),
    "head of LlamaForCausalLM is a Identity, expected": _other_head,
    "training mode.*eval": lambda model: model.train(),
}


@pytest.mark.parametrize("message", WEIGHTS)
def test_refuses_weights_that_are_not_plain(message):
    model = text_model("Llama")
    WEIGHTS[message](model)
    with pytest.raises(lensplug.LensplugError, match=message):
        lensplug.wrap(model)


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
CHANGED: dict[str, dict[str, Any]] = {
    "logit_scale=2.0": {"logit_scale": 2.0},
    "mlp_bias=True": {"mlp_bias": True},
    "hidden_act='gelu_pytorch_tanh'": {"hidden_act": "gelu_pytorch_tanh"},
    "rope_type': 'yarn'": {"rope_parameters": YARN},
    "rope_type': 'dynamic'": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "partial_rotary_factor": {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
}


@pytest.mark.skipif(not HOOKED, reason=ONLY_HOOKED)
@pytest.mark.parametrize("message", CHANGED)
def test_refuses_a_configuration_that_it_does_not_know(message):
    model = hf.LlamaForCausalLM(text_config("Llama", **CHANGED[message])).eval()
    with pytest.raises(lensplug.LensplugError, match=message):
        lensplug.wrap(model, engine="hooked_transformer")


@pytest.mark.parametrize("message", [each for each in CHANGED if each != "partial_rotary_factor"])  # HF cannot run that
def test_a_bridge_computes_what_a_configuration_asks_of_hugging_face(message):
    model = randomise(hf.LlamaForCausalLM(text_config("Llama", **CHANGED[message])))
    lens = lensplug.wrap(model)
    assert lens.engine == "bridge"
    tokens = text_tokens(100, batch=2)
    reference = reference_logits(model, {"input_ids": tokens})
    assert largest_difference(wrapped_logits(lens, tokens), reference) < 1e-4


def _gpt_neox():
    config = hf.GPTNeoXConfig(**{**BERT, "hidden_size": 16})
    return hf.GPTNeoXForCausalLM(config)


def test_refuses_a_decoder_whose_parts_have_other_names():
    with pytest.raises(lensplug.LensplugError, match="a GPTNeoXModel, has no embed_tokens.*embed_in, emb_"):
        lensplug.wrap(_gpt_neox().eval())


def test_an_error_is_a_value_error_and_wrap_gives_a_lens():
    assert issubclass(lensplug.LensplugError, ValueError)
    assert isinstance(lensplug.wrap(text_model("Llama")), MultimodalLens)
