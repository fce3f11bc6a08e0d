"""A bridge of the language core: Hugging Face's logits, the same memory, and a model that never notices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.built import built, core_parts
from support.models import (
    QUESTION,
    TEXT_CORES,
    largest_difference,
    llava_onevision,
    reference_logits,
    scene,
    text_model,
    text_tokens,
)

from lensplug import LensplugError
from lensplug.patches.bridge.core import build_language_bridge, causal_shell, shared_copy
from lensplug.patches.core_parts import CoreParts


@pytest.mark.parametrize("name", TEXT_CORES)
def test_logits_of_text_cores(name):
    hf, tokens = text_model(name), text_tokens(24, 2)
    model = build_language_bridge(core_parts(hf))
    assert largest_difference(model(tokens), reference_logits(hf, {"input_ids": tokens})) < 1e-4


def everything(hf, given):
    """What a user does with a Hugging Face model."""
    with torch.no_grad():
        plain = hf(**given, output_hidden_states=True)
        hf.set_attn_implementation("eager")
        eager = hf(**given, output_attentions=True)
        hf.set_attn_implementation("sdpa")
    assert len(eager.attentions) == hf.config.get_text_config().num_hidden_layers
    return [plain.logits, *plain.hidden_states, eager.logits, *eager.attentions]


def test_the_hugging_face_model_stays_as_it_was(tmp_path):
    hf, processor = llava_onevision()
    given = dict(processor(text="<image>" + QUESTION, images=[scene(48, 48)], return_tensors="pt"))
    before, modules = everything(hf, given), dict(hf.named_modules())
    state = {name: (value.data_ptr(), value.clone()) for name, value in hf.state_dict().items()}
    for process_weights in (False, False, True):
        model = build_language_bridge(core_parts(hf), process_weights=process_weights)
        model(torch.randn(1, 5, 96))
    assert dict(hf.named_modules()) == modules
    assert list(hf.state_dict()) == list(state)
    for name, value in hf.state_dict().items():
        assert value.data_ptr() == state[name][0] and torch.equal(value, state[name][1]), name
    assert all(map(torch.equal, everything(hf, given), before))
    hf.save_pretrained(tmp_path)
    again = type(hf).from_pretrained(tmp_path).eval()
    assert torch.equal(again(**given).logits, before[0])


@pytest.mark.parametrize("name", ["llama", "qwen2-tied"])
def test_weights_are_the_same_memory_and_gradients_are_not(name):
    hf = text_model(name)
    model = build_language_bridge(core_parts(hf))
    theirs = {p.data_ptr() for p in (*hf.get_decoder().parameters(), *hf.get_output_embeddings().parameters())}
    ours = {p.data_ptr() for p in model.original_model.parameters()}
    assert theirs <= ours
    assert len(ours - theirs) <= 1, "in 3.9 the unembedding gets a bias of zeros from the bridge"
    model(text_tokens(5))[0, -1, 3].backward()
    assert model.blocks[0].attn.q.original_component.weight.grad is not None
    assert all(parameter.grad is None for parameter in hf.parameters())
    with torch.no_grad():
        hf.get_decoder().layers[0].self_attn.q_proj.weight += 1
    assert largest_difference(model(text_tokens(5)), hf(text_tokens(5)).logits) < 1e-4


def test_a_model_wrapped_twice_gives_right_numbers():
    hf, tokens = text_model("llama"), text_tokens(24)
    first, second = (build_language_bridge(core_parts(hf)) for _ in range(2))
    reference = reference_logits(hf, {"input_ids": tokens})
    assert largest_difference(second(tokens), reference) < 1e-4
    first.blocks[0].hook_in.add_hook(lambda value, hook: value * 0)
    assert largest_difference(second(tokens), reference) < 1e-4 < largest_difference(first(tokens), reference)


def test_hooks_of_a_hugging_face_user_stay_with_his_model():
    hf, seen = text_model("llama"), []
    hf.model.layers[0].register_forward_hook(lambda module, args, output: seen.append(1))
    model = build_language_bridge(core_parts(hf))
    model(text_tokens(5))
    assert seen == []
    hf(text_tokens(5))
    assert seen == [1]


def test_a_bridged_model_is_refused():
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    hf = text_model("llama")
    head = hf.lm_head
    build_bridge_from_module(hf, "LlamaForCausalLM", hf_config=hf.config)
    with pytest.raises(LensplugError, match="there is a TransformerBridge around this LlamaModel already"):
        causal_shell(CoreParts(hf.model, head, hf.config))


def test_other_decoders_are_refused():
    hf, other = text_model("llama"), text_model("qwen2")
    with pytest.raises(LensplugError, match="Qwen2Model with model_type 'llama' cannot be bridged: expected LlamaMod"):
        hf.model.config, other.model.config = other.model.config, hf.model.config
        causal_shell(CoreParts(other.model, hf.lm_head, other.model.config))
    other.config.model_type = "gpt2"
    with pytest.raises(LensplugError, match="a 'gpt2' decoder cannot be bridged exactly: known are llama, qwen2"):
        causal_shell(CoreParts(other.model, other.lm_head, other.config))


def test_processed_weights_of_a_model_in_half_precision_are_refused():
    with pytest.raises(LensplugError, match="known for float32, the model is torch.bfloat16"):
        built("bridge", text_model("llama").bfloat16(), process_weights=True)


def test_a_shared_copy_shares_tied_parameters_too():
    hf = text_model("qwen2-tied")
    copied: Any = shared_copy(hf)
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    assert copied.lm_head.weight.data_ptr() == hf.lm_head.weight.data_ptr()


def test_gradients_of_norms_are_those_of_hugging_face():
    """What the bridge shows of a norm must be what the rest is computed from, or its gradient is a silent zero."""
    hf, tokens = text_model("llama"), text_tokens(12)
    model, kept = built("bridge", hf), {}

    def keep(value, hook):
        value.retain_grad()
        kept[hook.name] = value

    with model.hooks(fwd_hooks=[("blocks.1.ln2.hook_normalized", keep)]):
        model(tokens)[0, -1, 3].backward()
    norm = hf.model.layers[1].post_attention_layernorm
    inside = []
    norm.register_full_backward_hook(lambda module, of_input, of_output: inside.append(of_output[0]))
    hf(tokens, use_cache=False).logits[0, -1, 3].backward()
    expected = inside[0] * norm.weight
    assert bool(expected.any())
    torch.testing.assert_close(kept["blocks.1.ln2.hook_normalized"].grad, expected, atol=1e-4, rtol=1e-3)
