"""What one call leaves behind for the next: tables that grew, the default dtype, copies and what they share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.built import HOOKED, ONLY_HOOKED
from support.models import QUESTION, scene, text_model, text_tokens

import lensplug
from lensplug import analysis

ENGINES = [
    pytest.param("hooked_transformer", marks=pytest.mark.skipif(not HOOKED, reason=ONLY_HOOKED)),
    "bridge",
]
LONG = 2060
"""TransformerLens makes rotary tables for 2,048 positions, and longer ones when they are needed."""


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.mark.parametrize("what", ["generate", "TransformerLens", "cache", "check", "wrap"])
def test_gradients_flow_after_inference_mode(engine, what):
    """Inference tensors cannot be saved for the backward pass: none may be left in the model."""
    model = text_model("Llama", max_position_embeddings=4096, num_hidden_layers=1)
    with torch.inference_mode(what == "wrap"):
        lens = lensplug.wrap(model, engine=engine)
    inputs = lens.encode({"input_ids": text_tokens(LONG)})
    with torch.inference_mode():
        if what == "generate":
            lens.generate(inputs, max_new_tokens=1)
        if what == "TransformerLens":
            lens.model.generate(inputs, max_new_tokens=1, stop_at_eos=False, verbose=False)
        if what == "cache":
            lens.run_with_cache(inputs, names_filter=[], query_positions=[])
        if what == "check":
            lens.check(inputs)
    held = [*lens.model.parameters(), *lens.model.buffers()]
    assert not any(tensor.is_inference() for tensor in held)
    lens.run_with_gradients(lens.encode({"input_ids": text_tokens(16)}), target=5)


@pytest.mark.parametrize("keep", ["rollout", "head_mean", "modality_mass"])
def test_reductions_with_another_default_dtype(lens, inputs, keep):
    """As with the usual one, to the bit."""
    _, usual = lens.run_with_cache(inputs, keep=keep, names_filter=[])
    torch.set_default_dtype(torch.float64)
    try:
        _, other = lens.run_with_cache(inputs, keep=keep, names_filter=[])
    finally:
        torch.set_default_dtype(torch.float32)
    assert usual.keys() == other.keys() and len(usual.keys()) > 0
    for name in usual:
        assert other[name].dtype == usual[name].dtype and torch.equal(other[name], usual[name])


def test_patching_with_another_default_dtype(lens, inputs):
    corrupt = lens.prepare(QUESTION, images=[scene(96, 48, seed=5)])
    options: dict[str, Any] = {"groups": torch.zeros(inputs.tokens.shape[1]).long(), "layers": (0, 1)}
    try:
        usual = analysis.activation_patching(lens, inputs, corrupt, 5, **options)
        torch.set_default_dtype(torch.float64)
        other = analysis.activation_patching(lens, inputs, corrupt, 5, **options)
    finally:
        torch.set_default_dtype(torch.float32)
    assert usual.to_dataframe().equals(other.to_dataframe())


def test_a_copy_shares_with_itself_and_with_nothing_else(engine, lens, inputs):
    original = lensplug.wrap(lens.hf_model, lens.processor, engine=engine)
    before = original.model(inputs)
    copied = copy.deepcopy(original)
    assert torch.equal(copied.model(inputs), before)
    assert copied.core.decoder is copied.hf_model.get_decoder()

    def memory(*models):
        return {p.untyped_storage().data_ptr() for model in models for p in model.parameters()}

    shared = memory(original.model) & memory(original.hf_model)
    assert len(memory(copied.model) & memory(copied.hf_model)) == len(shared) > 50
    assert not memory(copied.model, copied.hf_model) & memory(original.model, original.hf_model)
    with torch.no_grad():
        copied.core.decoder.norm.weight.mul_(2)
    assert torch.equal(copied.model(inputs), 2 * before)
    assert torch.equal(original.model(inputs), before) and copied.check(inputs).agrees


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = text_model("Llama")
    with pytest.raises(lensplug.LensplugError, match="made in torch.inference_mode.*load the model outside it"):
        lensplug.wrap(model)
