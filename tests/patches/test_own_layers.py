"""Layers that keep no plain matrix, in a bridge: run by themselves, read as what they multiply with."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import transformers
from support.models import largest_difference, reference_logits, text_model, text_tokens
from torch import nn

import lensplug
from lensplug import LensplugError, analysis
from lensplug.patches.bridge.own_layers import matrix, own_layers

TOKENS = text_tokens(20)
SIZES = {"hidden_size": 64, "intermediate_size": 128}
"""Blocks of 64 numbers have one scale; and what is rounded to 4 bits still matters."""


def saved(folder, name="qwen2"):
    text_model(name, **SIZES).save_pretrained(folder)
    return folder


def bitsandbytes(folder, **options):
    """A model of bitsandbytes, on the processor in the precision of the stream."""
    pytest.importorskip("bitsandbytes")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    config = transformers.BitsAndBytesConfig(**options)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        saved(folder), quantization_config=config, dtype=torch.float32
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # a kernel for some processors, that rounds to bfloat16
            module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False).eval()


def int8(folder):
    return bitsandbytes(folder, load_in_8bit=True)


def nf4(folder):
    return bitsandbytes(folder, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def fp4_twice(folder):
    return bitsandbytes(folder, load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)


def torchao(folder):
    quantization: Any = pytest.importorskip("torchao.quantization")
    model = text_model("qwen2", **SIZES)
    quantization.quantize_(model.model, quantization.Int8WeightOnlyConfig())
    return model


class Adapted(nn.Linear):
    """Stands for a layer of a library that nobody knows: it computes more than its weight says."""

    def forward(self, x):
        return super().forward(x) + x.mean()


def unknown(folder):
    model = text_model("qwen2", **SIZES)
    attn: Any = model.model.layers[1].self_attn
    layer = Adapted(64, 64, bias=False)
    layer.weight = attn.o_proj.weight
    attn.o_proj = layer.eval()
    return model


KINDS = {"int8": int8, "nf4": nf4, "fp4 twice": fp4_twice, "torchao": torchao, "unknown": unknown}
READ = [name for name in KINDS if name != "unknown"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bridge_computes_what_the_layers_compute(kind, tmp_path):
    """Logits, and the gradient of one with respect to the embeddings, twice: some unpack themselves in the first."""
    model = KINDS[kind](tmp_path)
    lens = lensplug.wrap(model)
    assert lens.engine == "bridge"
    inputs = lens.encode({"input_ids": TOKENS})
    for _ in range(2):
        with torch.no_grad():
            wrapped = lens.model(inputs)
        assert largest_difference(wrapped, reference_logits(model, {"input_ids": TOKENS})) < 5e-5
        _, _, gradients = lens.run_with_gradients(inputs, target=5, names_filter="hook_embed")
        embeds = inputs.embeds.clone().requires_grad_()
        logit = model(inputs_embeds=embeds, use_cache=False).logits[0, -1, 5]
        expected = torch.autograd.grad(logit, embeds)[0]
        assert largest_difference(gradients["hook_embed"], expected) < 1e-4 * float(expected.abs().max())
    plain = text_model("qwen2", **SIZES)
    assert largest_difference(wrapped, reference_logits(plain, {"input_ids": TOKENS})) > 0.05, "nothing was quantised"


@pytest.mark.parametrize("kind", READ)
def test_weights_are_read_as_what_the_layers_multiply_with(kind, tmp_path):
    """A sum over heads, or neurons, along a direction is the logit only with the weights that are in force."""
    model = KINDS[kind](tmp_path)
    lens = lensplug.wrap(model)
    _, cache = lens.run_with_cache(lens.encode({"input_ids": TOKENS}))
    if kind == "int8":  # the layers round what they are given to 8 bits: no sum of products is their output
        with pytest.raises(LensplugError, match=r"its quantised layers round what they are given"):
            analysis.direct_attribution(cache, target=5, by="neuron")
    ways: list[Any] = ["layer"] if kind == "int8" else ["layer", "head", "neuron"]
    for by in ways:
        frame = analysis.direct_attribution(cache, target=5, by=by).to_dataframe()
        assert float((frame["sum"] - frame["logit"]).abs().max()) < 1e-5
    layer: Any = model.model.layers[0].mlp.down_proj
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert largest_difference(x @ matrix(layer).T.to(x), layer(x)) < (0.05 if kind == "int8" else 1e-4)
    original: Any = text_model("qwen2", **SIZES).model.layers[0].mlp.down_proj.weight
    assert 1e-4 < largest_difference(matrix(layer).float(), original) < 0.5 * float(original.detach().abs().max())


@pytest.mark.parametrize("kind", ["int8", "nf4", "torchao"])
def test_a_copy_of_the_lens_and_the_fingerprint(kind, tmp_path):
    model = KINDS[kind](tmp_path)
    lens = lensplug.wrap(model)
    inputs = lens.encode({"input_ids": TOKENS})
    _, cache = lens.run_with_cache(inputs)
    copied = copy.deepcopy(lens)
    with torch.no_grad():
        assert torch.equal(copied.model(inputs), lens.model(inputs))
        model.model.layers[0].input_layernorm.weight *= 2
        assert largest_difference(copied.model(inputs), lens.model(inputs)) > 0.1
    _, changed = lens.run_with_cache(inputs)
    assert cache.weights != changed.weights


def test_a_kernel_of_processors_without_gradients(tmp_path):
    """bitsandbytes packs 4-bit weights anew in a run without gradients; runs with them went wrong from then on."""
    model = nf4(tmp_path)
    layers: Any = own_layers(model.model)
    if not pytest.importorskip("bitsandbytes").functional.has_avx512bf16():
        pytest.skip("this processor has no such kernel")
    before = [matrix(layer) for layer in layers]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    lens = lensplug.wrap(model)
    inputs = lens.encode({"input_ids": TOKENS})
    assert layers[0].weight.quant_state.packing_format_for_cpu
    for layer, weight in zip(layers, before, strict=True):
        assert largest_difference(matrix(layer), weight) < 0.01 * float(weight.abs().max())
    _, _, gradients = lens.run_with_gradients(inputs, target=5, names_filter="hook_embed")
    exact = lensplug.wrap(nf4(tmp_path))
    _, _, expected = exact.run_with_gradients(inputs, target=5, names_filter="hook_embed")
    largest = float(expected["hook_embed"].abs().max())
    assert largest_difference(gradients["hook_embed"], expected["hook_embed"]) < 0.05 * largest


def test_what_is_not_known_is_said_where_it_matters(tmp_path):
    model = unknown(tmp_path)
    lens = lensplug.wrap(model)
    logits, cache = lens.run_with_cache(lens.encode({"input_ids": TOKENS}))
    analysis.head_specialization(cache, lens.encode({"input_ids": TOKENS}).modality)
    with pytest.raises(LensplugError, match="reads a weight as a matrix, and that of a Adapted"):
        analysis.direct_attribution(cache, target=5, by="head")
    with pytest.raises(LensplugError, match=r"no plain nn.Linear \(Adapted\), and processed weights are a copy"):
        lensplug.wrap(model, engine="bridge", process_weights=True)


def test_a_kernel_without_gradients_is_noticed():
    model = text_model("qwen2", **SIZES)
    layer: Any = Adapted(64, 64, bias=False)
    layer.forward = lambda x: x.detach() @ layer.weight.detach().T
    layer.weight = model.model.layers[1].self_attn.o_proj.weight
    model.model.layers[1].self_attn.o_proj = layer.eval()
    lens = lensplug.wrap(model)
    with pytest.raises(LensplugError, match="no gradient goes through a Adapted here"):
        lens.run_with_gradients(lens.encode({"input_ids": TOKENS}), target=5)


def test_hooks_of_a_hugging_face_user_on_such_a_layer_stay_with_his_model(tmp_path):
    model, seen = unknown(tmp_path), []
    handle = model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda *given: seen.append(1))
    lens = lensplug.wrap(model, check=False)
    lens.model(TOKENS)
    assert seen == []
    model(TOKENS)
    assert seen == [1]
    handle.remove()


def test_plain_models_have_none():
    assert own_layers(text_model("qwen2")) == []
