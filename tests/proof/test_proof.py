"""`lens.proof`: when it is made, on what, and what it says."""

from __future__ import annotations

import copy

import pytest
import torch
from support.models import llava_onevision, text_model
from support.qwen3_vl_media import qwen3_vl_with_processor

import lensplug
from lensplug import engines
from lensplug.errors import LensplugError
from lensplug.proof.full_precision import full_precision
from lensplug.proof.prove import prove
from lensplug.proof.report import Check, Proof

ENGINES = engines.installed()


def test_a_tested_family_is_not_proved_again():
    lens = lensplug.wrap(text_model("qwen2"))
    assert (lens.proof.standing, lens.proof.checks) == ("tested family", ())
    assert "tested family" in str(lens.proof)
    assert not hasattr(lens.model, "proof")


@pytest.mark.parametrize("engine", ENGINES)
def test_it_is_forced_and_kept_by_copies(engine):
    lens = lensplug.wrap(text_model("qwen3"), engine=engine, prove=True)
    assert lens.proof.passed
    assert {check.outcome for check in lens.proof.checks} <= {"passed", "not proved"}
    assert copy.deepcopy(lens).proof == lens.proof
    assert len(str(lens.proof).splitlines()) <= 10
    assert len(lens.proof.to_dataframe()) == len(lens.proof.checks)


@pytest.mark.parametrize("engine", ENGINES)
def test_with_a_picture_and_its_processor(engine):
    lens = lensplug.wrap(*llava_onevision(), engine=engine, prove=True)
    names = {check.name: check.outcome for check in lens.proof.checks}
    assert names["logits (image)"] == names["decompose_resid sums (image)"] == "passed"
    assert names["query_positions rows (image)"] == "passed"


def test_features_that_are_added_between_the_layers_are_proved_with_a_picture():
    """Hugging Face's layers return their stream without them."""
    lens = lensplug.wrap(*qwen3_vl_with_processor(), prove=True)
    names = {check.name: check.outcome for check in lens.proof.checks}
    assert names["every layer's residual stream (image)"] == names["decompose_resid sums (image)"] == "passed"


def test_half_precision_is_proved_in_full():
    lens = lensplug.wrap(text_model("qwen2").to(torch.bfloat16), engine="bridge", prove=True)
    assert lens.proof.dtype == "float32"
    assert all((check.number or 0.0) < 1e-4 for check in lens.proof.checks)


def test_a_fault_smaller_than_rounding_is_found_in_half_precision():
    lens = lensplug.wrap(text_model("qwen2").to(torch.bfloat16), engine="bridge")
    lens.model.blocks[2].attn.original_component.scaling *= 1.001
    proof = prove(lens.hf_model, lens.core, lens.model, engine="bridge")
    assert proof.first_failure is not None
    assert (proof.first_failure.name, proof.first_failure.where) == ("each layer alone", "layer 2")


@pytest.mark.parametrize("fits", [True, False])
def test_full_precision_puts_every_weight_back(monkeypatch, fits):
    lens = lensplug.wrap(text_model("qwen3").to(torch.bfloat16), engine="bridge")
    monkeypatch.setattr("lensplug.proof.full_precision.free_bytes", lambda device: 1e12 if fits else 0)
    models = (lens.hf_model, lens.model.original_model)
    before = [[(name, id(value)) for name, value in model.named_parameters()] for model in models]
    hooks = [[len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()] for model in models]
    with full_precision(lens.core, lens.model) as whole:
        assert whole is fits
        assert lens.core.head.weight.dtype == torch.float32
    assert before == [[(name, id(value)) for name, value in model.named_parameters()] for model in models]
    assert hooks == [[len(part._forward_hooks) + len(part._forward_pre_hooks) for part in m.modules()] for m in models]
    assert prove(*(lens.hf_model, lens.core, lens.model), engine="bridge").passed


def test_nothing_is_left_on_either_model():
    lens = lensplug.wrap(text_model("qwen2"), engine="bridge")
    parts = [*lens.hf_model.modules(), *lens.model.modules()]
    before = [(dict(part._forward_hooks), dict(part._forward_pre_hooks), set(part.__dict__)) for part in parts]
    implementation = lens.core.decoder.config._attn_implementation
    lens.model(torch.tensor([[1, 2]]))  # what a bridge notes for itself at its first run
    assert prove(lens.hf_model, lens.core, lens.model, engine="bridge").passed
    after = [(dict(part._forward_hooks), dict(part._forward_pre_hooks), set(part.__dict__)) for part in parts]
    assert [hooks[:2] for hooks in before] == [hooks[:2] for hooks in after] or not any(map(_differs, before, after))
    assert lens.core.decoder.config._attn_implementation == implementation
    assert all(parameter.grad is None for parameter in lens.hf_model.parameters())


def _differs(before, after):
    return len(before[0]) != len(after[0]) or len(before[1]) != len(after[1])


def test_processed_weights_are_not_proved():
    with pytest.raises(LensplugError, match="leave one of them out"):
        lensplug.wrap(text_model("qwen2"), prove=True, process_weights=True)


def test_it_prints_what_failed_and_what_was_not_proved():
    checks = [
        Check("each layer alone", "failed", 0.2, 1e-4, "layer 3"),
        Check("logits", "passed", 1e-6, 1e-4),
        *(Check(f"{kind} input", "not proved", why="no processor") for kind in ("image", "video", "audio", "smell")),
    ]
    text = str(Proof("model", "bridge", "float32", tuple(checks), "failed", 1.0))
    assert "each layer alone failed 2.0e-01 (allowed 1e-04) at layer 3" in text
    assert "and 2 more not proved: audio input, smell input" in text
    assert len(text.splitlines()) <= 10
