"""Adapters of PEFT that are not merged: with and without them in one lens, against Hugging Face."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.granite_speech import granite_speech
from support.models import largest_difference, reference_logits, text_model, text_tokens

import lensplug
from lensplug import LensplugError, analysis
from lensplug.patches.bridge.own_layers import matrix, own_layers

peft: Any = pytest.importorskip("peft")
TOKENS = text_tokens(20)
GIVEN = {"input_ids": TOKENS}


def lora(**options):
    return peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False, **options)


def adapted(*names, name="llama", **options):
    """A model with random adapters, the first of which acts."""
    torch.manual_seed(0)
    model = peft.get_peft_model(text_model(name), lora(**options), adapter_name=names[0])
    for other in names[1:]:
        model.add_adapter(other, lora(**options))
    return model.eval()


def state(model):
    """What a user sees of the adapters."""
    parameters = {name: (weight.requires_grad, weight.grad) for name, weight in model.named_parameters()}
    layers = [module for module in model.modules() if hasattr(module, "base_layer")]
    return parameters, [(layer.active_adapters, layer.disable_adapters) for layer in layers]


def test_each_adapter_and_none_as_in_hugging_face():
    model = adapted("default", "other")
    lens = lensplug.wrap(model)
    assert lens.engine == "bridge" and type(lens.hf_model).__name__ == "LlamaForCausalLM"
    inputs, before = lens.encode(GIVEN), state(model)

    def wrapped():
        with torch.no_grad():
            return lens.model(inputs)

    seen = {}
    for name in ("default", "other", "off"):
        with lens.adapter(name):
            seen[name] = wrapped()
            assert largest_difference(seen[name], reference_logits(lens.hf_model, GIVEN)) < 1e-4
            assert lens.check(inputs).agrees
    assert largest_difference(seen["off"], reference_logits(text_model("llama"), GIVEN)) < 1e-4
    model.set_adapter("other")
    assert largest_difference(seen["other"], reference_logits(lens.hf_model, GIVEN)) < 1e-4
    model.set_adapter("default")
    assert min(largest_difference(seen[a], seen[b]) for a, b in (("default", "off"), ("default", "other"))) > 0.1
    assert torch.equal(wrapped(), seen["default"])
    assert state(model) == before


def test_scopes_in_scopes_end_as_they_began():
    model = adapted("default", "other")
    lens = lensplug.wrap(model)
    before = state(model)
    with lens.adapter("off"):
        off = lens.model(TOKENS)
        with pytest.raises(RuntimeError, match="a user's"), lens.adapter("other"):
            with lens.adapter("off"):
                assert torch.equal(lens.model(TOKENS), off)
            assert largest_difference(lens.model(TOKENS), off) > 0.1
            raise RuntimeError("a user's")
        assert torch.equal(lens.model(TOKENS), off)
    assert state(model) == before


def test_gradients_reach_no_adapter_and_weights_are_read_with_it():
    model = adapted("default")
    lens = lensplug.wrap(model)
    inputs, before = lens.encode(GIVEN), state(model)
    lens.run_with_gradients(inputs, target=5)
    assert state(model) == before
    attributed, weights = {}, set()
    for name in ("default", "off"):
        with lens.adapter(name):
            _, cache = lens.run_with_cache(inputs)
            weights.add(cache.weights)
            attributed[name] = analysis.direct_attribution(cache, target=5, by="neuron")  # refuses what does not sum
    assert len(weights) == 2 and attributed["off"].provenance.weights in weights
    _, plain = lensplug.wrap(text_model("llama"), engine="bridge").run_with_cache(inputs)
    assert attributed["off"].provenance.weights == plain.weights, "without the adapter it is the model below"


def test_what_is_not_known_is_refused():
    model = adapted("default")
    lens = lensplug.wrap(model)
    with pytest.raises(LensplugError, match="there is no adapter 'poems': there are 'default', or 'off'"):
        with lens.adapter("poems"):
            pass
    with pytest.raises(LensplugError, match="LlamaForCausalLM has no adapters"):
        with lensplug.wrap(text_model("llama")).adapter("off"):
            pass
    with pytest.raises(LensplugError, match=r"Linear with an adapter.*merge_and_unload|no HookedTransformer"):
        lensplug.wrap(model, engine="hooked_transformer")
    model.merge_adapter()
    with pytest.raises(LensplugError, match=r"merged into the weights.*unmerge_adapter"):
        with lens.adapter("off"):
            pass
    prompt = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with pytest.raises(LensplugError, match="'default' is a learned prompt"):
        lensplug.wrap(peft.get_peft_model(text_model("llama"), prompt).eval())


def test_dora_runs_and_says_that_its_weight_is_no_sum():
    model = adapted("default", use_dora=True)
    lens = lensplug.wrap(model)
    assert largest_difference(lens.model(TOKENS), reference_logits(lens.hf_model, GIVEN)) < 1e-4
    with pytest.raises(LensplugError, match="a variant of LoRA that is no sum"):
        matrix(own_layers(lens.core.decoder)[0])


def test_a_merged_model_has_no_adapters_any_more():
    merged = adapted("default").merge_and_unload().eval()
    kept = adapted("default")
    expected = reference_logits(merged, GIVEN)
    assert largest_difference(lensplug.wrap(kept).model(TOKENS), expected) < 1e-4
    assert largest_difference(lensplug.wrap(merged).model(TOKENS), expected) < 1e-4


def test_the_adapter_of_granite_speech_acts_where_it_is_on():
    """As transformers puts it into the model: layers with an adapter, no PeftModel around it."""
    model, processor = granite_speech()
    peft.inject_adapter_in_model(lora(), model.get_decoder())
    model.requires_grad_(False).eval()
    lens = lensplug.wrap(model, processor)
    waveform = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 8
    inputs = lens.prepare("what ?", audio=[(waveform, 16000)])
    seen = {}
    for name in ("default", "off"):
        with lens.adapter(name):
            seen[name] = lens.model(inputs)
            assert largest_difference(seen[name], reference_logits(model, inputs.model_inputs)) < 1e-4
    assert largest_difference(lens.model(inputs), seen["default"]) == 0
    assert largest_difference(seen["default"], seen["off"]) > 0.1
