"""`lensplug.estimate` of a configuration against the model that it describes, and the runs of its lens."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
from support.beside import qwen3_vl
from support.models import llava, llava_onevision, text_config, text_model, text_tokens

import lensplug
from lensplug import LensplugError

FAMILIES: dict[str, Any] = {
    "llava-onevision": lambda: llava_onevision()[0],
    "llava": lambda: llava()[0],
    "qwen2-tied": lambda: text_model("qwen2-tied"),
    "qwen3": lambda: text_model("qwen3"),
    "qwen3-vl": qwen3_vl,  # whose first layers add features of the image
}


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_runs_are_those_of_the_model(family):
    model = FAMILIES[family]()
    estimated = lensplug.estimate(model.config, tokens=24, examples=2, dtype="float32")
    assert estimated.parameters == sum(weight.numel() for weight in model.parameters())
    assert estimated.weights["float32"] == sum(weight.nbytes for weight in model.parameters())
    assert estimated.weights["bfloat16"] == estimated.weights["float32"] // 2
    core = {weight for part in (model.get_decoder(), model.lm_head) for weight in part.parameters()}
    assert estimated.core_parameters == sum(weight.numel() for weight in core)
    lens = lensplug.wrap(model, engine="bridge")
    inputs = lens.encode({"input_ids": text_tokens(24, 2)})
    kinds: dict[str, dict[str, Any]] = {"all hooks": {}, "query_positions=[-1]": {"query_positions": [-1]}}
    for kept, options in kinds.items():
        assert estimated.runs[kept] == lens.estimate(inputs, **options).total
    assert estimated.fits() and estimated.fits(run="all hooks")


def test_quantised_weights_are_what_bitsandbytes_keeps(tmp_path):
    pytest.importorskip("bitsandbytes")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    text_model("llama", **sizes).save_pretrained(tmp_path)
    estimated = lensplug.estimate(tmp_path, tokens=8)
    assert estimated.name == tmp_path.name
    for form, options in (("int8", {"load_in_8bit": True}), ("4-bit", {"load_in_4bit": True})):
        config = transformers.BitsAndBytesConfig(**options)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=config, dtype=torch.bfloat16
        )
        found = 0
        for weight in model.parameters():
            scales = [getattr(weight, "SCB", None), getattr(getattr(weight, "quant_state", None), "absmax", None)]
            found += weight.nbytes + sum(scale.nbytes for scale in scales if scale is not None)
        assert estimated.weights[form] == pytest.approx(found, rel=0.02)


def test_the_table_and_what_is_too_large():
    large: Any = transformers.Qwen2Config(
        hidden_size=8192, intermediate_size=29568, num_hidden_layers=4, num_attention_heads=64, num_key_value_heads=8
    )
    estimated = lensplug.estimate(large, tokens=100_000, examples=4)
    table = estimated.to_dataframe()
    assert list(table["part"].unique()) == ["weights", "run"] and set(table["of"]) > {"int8", "4-bit", "all hooks"}
    assert not estimated.fits(run="all hooks") and "too large  above them, all hooks" in repr(estimated)
    assert "Qwen2ForCausalLM: " in repr(estimated) and "4 x 100000 positions in bfloat16" in repr(estimated)


def test_a_core_that_cannot_be_wrapped_still_has_weights():
    model = transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=40)
    with pytest.raises(LensplugError, match="is a T5Config, of which no language model can be made"):
        lensplug.estimate(model)
    other: Any = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40)
    estimated = lensplug.estimate(other, tokens=8)
    assert estimated.parameters > 0
    assert estimated.runs or estimated.why_no_runs.startswith("No runs: ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: lensplug.estimate("/no/such/folder"), "could not be loaded"),
        (lambda: lensplug.estimate(text_model("llama")), "a LlamaForCausalLM is neither the name of a model"),
        (lambda: lensplug.estimate(text_config("Llama"), tokens=0), "tokens is 0 and examples 1, expected at least 1"),
    ],
)
def test_what_is_no_model(given, message):
    with pytest.raises(LensplugError, match=message):
        given()
