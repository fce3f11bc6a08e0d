"""The front door: weights shared or copied, nothing of Hugging Face's changed, folders loaded and refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from support.audio_llamas import audio_llama, processed, sounds
from support.models import (
    QUESTION,
    TEXT_CORES,
    largest_difference,
    llava,
    llava_onevision,
    reference_logits,
    scene,
    text_model,
    text_tokens,
    wrapped_logits,
)

import lensplug


def fingerprint(model) -> str:
    """Every weight of a model, byte for byte, with its name."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def storages(module) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}


@pytest.mark.parametrize("name", ["llama-tied", "llama-attention-bias", "qwen2", "mistral", "qwen3"])
def test_weights_are_shared(name):
    model = text_model(name)
    before = fingerprint(model)
    wrapped = lensplug.wrap(model).model
    shared = storages(model)
    own = [n for n, p in wrapped.named_parameters() if p.untyped_storage().data_ptr() not in shared]
    assert storages(model) <= storages(wrapped), "every weight of the core is there, none of them copied"
    assert all(not wrapped.get_parameter(n).any() for n in own), "only biases that the core lacks are new, and zero"
    assert sum(wrapped.get_parameter(n).numel() for n in own) < 0.1 * sum(p.numel() for p in wrapped.parameters())
    assert fingerprint(model) == before


def test_a_shared_weight_that_changes_changes_both():
    model = text_model("qwen2")
    lens, tokens = lensplug.wrap(model), text_tokens()
    before = wrapped_logits(lens, tokens)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    after = reference_logits(model, {"input_ids": tokens})
    assert largest_difference(before, after) > 0.1
    assert largest_difference(wrapped_logits(lens, tokens), after) < 1e-4


@pytest.mark.parametrize("name", TEXT_CORES)
def test_processed_weights_are_a_copy_with_the_same_log_probabilities(name):
    model = text_model(name)
    before, tokens = fingerprint(model), text_tokens(batch=2)
    lens = lensplug.wrap(model, process_weights=True)
    assert not storages(model) & storages(lens.model)
    assert fingerprint(model) == before
    reference = reference_logits(model, {"input_ids": tokens})
    wrapped = wrapped_logits(lens, tokens)
    assert largest_difference(wrapped.log_softmax(-1), reference.log_softmax(-1)) < 1e-4
    assert largest_difference(wrapped, reference - reference.mean(-1, keepdim=True)) < 1e-4
    if lens.engine == "hooked_transformer":
        assert lens.model.cfg.normalization_type == "RMSPre", "the norms are folded away"
    else:
        assert torch.equal(lens.model.ln_final.weight, torch.ones(32)), "the norms are folded away"


def test_processed_weights_on_an_image(folded_lens, inputs):
    reference = reference_logits(folded_lens.hf_model, inputs.model_inputs)
    wrapped = wrapped_logits(folded_lens, inputs)
    assert largest_difference(wrapped.log_softmax(-1), reference.log_softmax(-1)) < 1e-4
    assert folded_lens.check(inputs).agrees


def test_wrapping_changes_nothing_on_the_model():
    model, processor = llava()
    before, config = fingerprint(model), model.config.to_dict()
    lens = lensplug.wrap(model, processor)
    lens.run_with_cache(lens.prepare("What <image> is?", images=[scene(60, 44)], chat_template=False))
    assert fingerprint(model) == before and model.config.to_dict() == config
    assert model.get_decoder().config._attn_implementation == "sdpa" and not model.training
    assert (lens.hf_model, lens.processor, lens.tokenizer) == (model, processor, processor.tokenizer)


@pytest.mark.parametrize("build", [llava_onevision, llava])
def test_saved_and_loaded(tmp_path, build):
    model, processor = build()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    lens = lensplug.load(tmp_path, device="cpu", dtype="float32")
    assert type(lens.hf_model) is type(model) and not lens.hf_model.training
    chat = build is llava_onevision
    prompt = QUESTION if chat else "What <image> is?"
    arguments: dict[str, Any] = {"images": [scene(80, 64)], "chat_template": chat}
    inputs = lens.prepare(prompt, **arguments)
    reference = reference_logits(model, lensplug.wrap(model, processor).prepare(prompt, **arguments).model_inputs)
    assert largest_difference(wrapped_logits(lens, inputs), reference) < 1e-4


@pytest.mark.parametrize("encoder", ["wav2vec2", "whisper"])
def test_an_audio_llama_saved_and_loaded(encoder, tmp_path):
    """transformers does not have its class; it is found through the Auto classes."""
    model, processor = audio_llama(encoder)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    lens = lensplug.load(tmp_path, device="cpu", dtype="float32")
    assert type(lens.hf_model) is type(model) and type(lens.processor) is type(processor)
    prompts, waveforms = ["we won <audio> the game", "<audio> today"], sounds(0.4, 0.7)
    reference = reference_logits(model, processed(processor, prompts, waveforms))
    inputs = lens.prepare(prompts, audio=[[(waveform, 16000)] for waveform in waveforms], chat_template=False)
    assert largest_difference(wrapped_logits(lens, inputs), reference, inputs.attention_mask) < 1e-4


def test_the_audio_llama_is_known_to_transformers_when_its_package_is_imported(tmp_path):
    audio_llama("wav2vec2")[0].config.save_pretrained(tmp_path)
    code = (
        "import sys, transformers, lensplug.audio_llama;"
        " print(transformers.AutoConfig.from_pretrained(sys.argv[1]).model_type)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "audio_llama"


def test_loads_in_the_dtype_that_is_asked_for(tmp_path):
    model, processor = llava()
    model.bfloat16().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for asked, expected in (("auto", torch.bfloat16), (torch.float32, torch.float32)):
        lens = lensplug.load(str(tmp_path), device="cpu", dtype=asked)
        assert lens.core.dtype == lens.model.W_E.dtype == expected


def test_refuses_a_folder_without_a_model(tmp_path):
    for name in (tmp_path / "missing", str(tmp_path / "missing"), "./missing"):
        with pytest.raises(lensplug.LensplugError, match="missing' could not be loaded: there is no such folder"):
            lensplug.load(name)
    with pytest.raises(lensplug.LensplugError, match=f"{tmp_path.name}.* could not be loaded: the folder is empty"):
        lensplug.load(tmp_path, local_files_only=True)


def test_refuses_an_engine_that_it_does_not_know():
    with pytest.raises(
        lensplug.LensplugError, match="engine is 'nnsight', expected 'auto', 'hooked_transformer' or 'bridge'"
    ):
        lensplug.wrap(text_model("Llama"), engine="nnsight")  # type: ignore[arg-type]


def test_wrap_refuses_when_the_short_check_differs(monkeypatch):
    """A model that does something to its logits after the head, which no configuration says."""
    model = text_model("Llama")
    forward = model.forward

    def capped(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output

    monkeypatch.setattr(model, "forward", capped)
    with pytest.raises(lensplug.LensplugError, match="DIFFERS from LlamaForCausalLM.*check=False"):
        lensplug.wrap(model)
    assert lensplug.wrap(model, check=False).model.cfg.n_layers == 3
