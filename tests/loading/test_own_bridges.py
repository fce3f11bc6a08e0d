"""A bridge that a user has made with TransformerLens alone, wrapped; and what is no Hugging Face model, refused."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.audio_llamas import sounds
from support.audio_relatives import relative
from support.beside import FAMILIES
from support.built import ENGINES, HOOKED, ONLY_HOOKED, built
from support.models import (
    IMAGE_FAMILIES,
    QUESTION,
    largest_difference,
    llava_onevision,
    reference_logits,
    scene,
    snapshot,
    text_model,
    text_tokens,
)
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import lensplug
from lensplug import LensplugError, analysis
from lensplug.provenance.public_names import public_name


def own_bridge(hf, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, **options)


def audio(name):
    hf, processor = relative(name)
    given = dict(processor(text="How does <|AUDIO|> sound?", audio=[sounds(0.7)[0]], return_tensors="pt"))
    return hf, given


def text(name):
    return text_model(name), {"input_ids": text_tokens(24)}


MODELS = {
    "llama-tied": lambda: text("llama-tied"),
    "qwen3": lambda: text("qwen3"),
    "llava": IMAGE_FAMILIES["llava"],
    "llava-next": IMAGE_FAMILIES["llava-next"],
    "idefics3": IMAGE_FAMILIES["idefics3"],
    "gemma3": lambda: (FAMILIES["gemma3"][0](), FAMILIES["gemma3"][1](20, 13)),
    "qwen2-audio": lambda: audio("qwen2_audio"),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_before_it_was_bridged(name):
    hf, given = MODELS[name]()
    expected = reference_logits(hf, given)
    lens = lensplug.wrap(own_bridge(hf))
    inputs = lens.encode(given)
    with torch.no_grad():
        assert largest_difference(lens.model(inputs), expected, inputs.attention_mask) < 1e-4
    assert lens.check(inputs).agrees
    assert type(lens.hf_model) is type(hf)


@pytest.fixture(scope="module")
def onevision():
    hf, processor = llava_onevision()
    given = dict(processor(text="<image>" + QUESTION, images=[scene(48, 48)], return_tensors="pt"))
    return hf, processor, given, reference_logits(hf, given)


@pytest.fixture(scope="module")
def bridge(onevision):
    hf, processor, _, _ = onevision
    return own_bridge(hf, tokenizer=processor.tokenizer)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bridge_with_its_processor_is_a_lens_and_stays_as_it_was(onevision, bridge, engine):
    hf, processor, given, expected = onevision
    tokens = given["input_ids"]
    beside = {name: value for name, value in given.items() if name != "input_ids"}
    fired = []
    bridge.add_hook("blocks.1.hook_out", lambda value, hook: fired.append(hook.name))
    before, modules, state = bridge(tokens, **beside), dict(hf.named_modules()), snapshot(bridge)
    fired.clear()
    lens = lensplug.wrap(bridge, processor, engine=engine)
    inputs = lens.prepare(QUESTION, images=[scene(48, 48)])
    _, cache = lens.run_with_cache(inputs)
    assert analysis.head_specialization(cache, inputs.modality).modalities == ("text", "image", "sink")
    assert lens.check(inputs).agrees and lens.tokenizer is processor.tokenizer
    with torch.no_grad():
        assert largest_difference(lens.model(lens.encode(given)), expected) < 1e-4
    assert fired == [], "hooks of the bridge are the bridge's"
    assert dict(hf.named_modules()) == modules and snapshot(bridge) == state
    assert torch.equal(bridge(tokens, **beside), before) and fired == ["blocks.1.hook_out"]
    bridge.reset_hooks()


def test_weights_are_the_bridges(onevision, bridge):
    hf, processor, given, _ = onevision
    lens = lensplug.wrap(bridge)
    ours = {parameter.data_ptr() for parameter in lens.hf_model.parameters()}
    theirs = {parameter.data_ptr() for parameter in hf.parameters()}
    assert ours <= theirs and len(ours) > 50
    assert lens.tokenizer is bridge.tokenizer, "what the bridge has, where none is given"


def test_the_bridged_model_itself_and_one_that_is_bridged_twice(onevision, bridge):
    hf, processor, given, expected = onevision
    for model in (hf, own_bridge(hf)):
        lens = lensplug.wrap(model, processor)
        assert largest_difference(reference_logits(lens.hf_model, given), expected) < 1e-4


def test_a_booted_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    hf, processor = llava_onevision()
    folder = tmp_path / "somebodys home" / "my-model"
    hf.save_pretrained(folder)
    processor.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    lens = lensplug.wrap(bridge, processor)
    inputs = lens.prepare(QUESTION, images=[scene(48, 48)])
    assert largest_difference(lens.model(inputs), reference_logits(hf, inputs.model_inputs)) < 1e-4
    assert str(folder) in bridge.cfg.model_name and lens.core.name == lens.model.cfg.model_name == "my-model"
    tokens = text_tokens(12)
    for cache in (bridge.run_with_cache(tokens)[1], lens.run_with_cache(inputs)[1]):
        result = analysis.attention_rollout(cache, rows=-1)
        assert result.provenance.model == "my-model"
        assert "somebodys" not in repr(result) + str(vars(result.provenance))


def test_processed_weights_are_refused():
    bridge = own_bridge(text_model("llama"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge.enable_compatibility_mode(disable_warnings=True)
    for model in (bridge, bridge.original_model):
        with pytest.raises(
            LensplugError, match="processed weights.*lensplug.wrap.bridge, processor, process_weights=T"
        ):
            lensplug.wrap(model)
    unprocessed = own_bridge(text_model("llama"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unprocessed.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert lensplug.wrap(unprocessed).check is not None


@pytest.mark.skipif(not HOOKED, reason=ONLY_HOOKED)
def test_a_hooked_transformer_is_refused_with_what_to_type():
    model = built("hooked_transformer", text_model("llama"))
    with pytest.raises(LensplugError, match=r"HookedTransformer has no Hugging Face model.*from_pretrained\('llama'\)"):
        lensplug.wrap(model, None)


def test_a_lens_and_a_name_are_refused_with_what_to_type(lens):
    with pytest.raises(LensplugError, match="a lens already"):
        lensplug.wrap(lens)
    with pytest.raises(LensplugError, match=r"lensplug.load\('llava-hf/x'\)"):
        lensplug.wrap("llava-hf/x")


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("gpt2", "gpt2"),
        ("unknown", "unknown"),
        ("/home/somebody/models/my-model", "my-model"),
        ("/home/somebody/models/my-model/", "my-model"),
        ("~/my-model", "my-model"),
        ("./runs/my-model", "my-model"),
        ("runs/of/somebody/my-model", "my-model"),
        (r"C:\Users\somebody\my-model", "my-model"),
        ("/cache/hub/models--llava-hf--llava-1.5-7b-hf/snapshots/0123abc", "llava-hf/llava-1.5-7b-hf"),
    ],
)
def test_a_path_is_not_told(name, public):
    assert public_name(name) == public
