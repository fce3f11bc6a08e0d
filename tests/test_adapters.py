"""TransformerLens's own bridges of whole audio models, against Hugging Face."""

from __future__ import annotations

import random
import warnings
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from support.audio_relatives import relative
from support.models import largest_difference
from transformer_lens.factories import architecture_adapter_factory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import lensplug
from lensplug import LensplugError, adapters
from lensplug.audio_llama import AudioLlamaForConditionalGeneration
from lensplug.tiny.voices import make_voice

CHECKPOINT = Path(lensplug.tiny.__file__).parent / "checkpoints" / "audio-llama"


@pytest.fixture(scope="module")
def heard():
    """What the processor makes of a voice, under the names that a bridge passes on, and Hugging Face's logits."""
    lens = lensplug.tiny.audio_llama()
    voice = make_voice(random.Random(4), emotion="happy")
    outputs = dict(lens.prepare(voice.prompt("sound"), audio=[voice.audio]).model_inputs)
    with torch.no_grad():
        expected = lens.hf_model(**outputs).logits
    outputs["sounds"] = outputs.pop("input_values")
    return outputs, expected


def test_the_entry_points_are_the_adapters():
    declared = distribution("lensplug").entry_points.select(group="transformer_lens.architectures")
    assert {point.name: point.load() for point in declared} == adapters.ADAPTERS


def test_transformer_lens_boots_audio_llama(heard):
    outputs, expected = heard
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Custom architecture adapter")
        adapters.register()
        adapters.register()  # once more changes nothing
    bridge = TransformerBridge.boot_transformers(str(CHECKPOINT), device="cpu")
    assert type(bridge.original_model) is AudioLlamaForConditionalGeneration
    tokens = outputs.pop("input_ids")
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tokens, **outputs)
    outputs["input_ids"] = tokens
    assert largest_difference(logits, expected) < 1e-4
    vectors = cache["audio_projector.hook_out"]
    at = tokens[0] == bridge.original_model.config.audio_token_id
    torch.testing.assert_close(cache["blocks.0.hook_resid_pre"][0, at], vectors.reshape(-1, vectors.shape[-1]))
    assert f"blocks.{bridge.cfg.n_layers - 1}.attn.hook_pattern" in cache
    silent = dict(outputs, sounds=torch.zeros_like(outputs["sounds"]))
    with torch.no_grad():
        without = bridge(silent.pop("input_ids"), **silent)
    assert largest_difference(without, expected) > 0.1, "the sound arrives"


def test_voxtral_in_memory():
    model, processor = relative("voxtral")
    lens = lensplug.wrap(model, processor, check=False)
    inputs = dict(lens.prepare("What is said?", audio=[(make_voice(random.Random(0)).audio[0], 8000)]).model_inputs)
    with torch.no_grad():
        expected = model(**inputs).logits
    model.set_attn_implementation("eager")
    bridge = build_bridge_from_module(model, "VoxtralForConditionalGeneration", hf_config=model.config.text_config)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(inputs.pop("input_ids"), **inputs)
    assert largest_difference(logits, expected) < 1e-4
    assert {"audio_encoder.hook_out", "audio_projector.hook_out"} <= set(cache.keys())


def test_what_transformer_lens_has_itself_stays(monkeypatch):
    adapters.register()
    table = architecture_adapter_factory.SUPPORTED_ARCHITECTURES
    monkeypatch.setitem(table, "VoxtralForConditionalGeneration", object)
    adapters.register()
    assert table["VoxtralForConditionalGeneration"] is object


def test_sounds_are_given_once(heard):
    outputs, expected = heard
    model = lensplug.tiny.audio_llama().hf_model
    with torch.no_grad():
        assert largest_difference(model(**outputs).logits, expected) == 0
    with pytest.raises(LensplugError, match="given twice"):
        model(**outputs, input_values=outputs["sounds"])
