"""Fingerprints of weights: others for other weights, the same on both engines, in each process and precision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.built import ENGINES, HOOKED
from support.caches import ROTARY, run, text_model, tokens
from support.models import llava_onevision
from torch import nn

import lensplug
from lensplug import analysis
from lensplug.engines import EngineName
from lensplug.provenance.fingerprint import fingerprint


def test_both_engines_of_one_model_have_one_fingerprint(lens):
    engines: list[EngineName] = ["bridge", "hooked_transformer"] if HOOKED else ["bridge"]
    found = {fingerprint(lensplug.wrap(lens.hf_model, lens.processor, engine=one).model) for one in engines}
    assert found == {fingerprint(lens.model)} and len(fingerprint(lens.model)) == 16


@pytest.mark.parametrize("part", ["model.language_model.layers.1.self_attn.q_proj.weight", "projector", "norm"])
def test_a_change_of_any_part_of_the_full_model_is_seen(part):
    """An adapter on one projection, a projector that was trained on, one norm."""
    hf_model, processor = llava_onevision()
    own = lensplug.wrap(hf_model, processor, check=False)
    before = fingerprint(own.model)
    weight = next(value for name, value in hf_model.named_parameters() if part in name)
    kept = weight.detach().clone()
    weight.data.mul_(1.01)  # in place, past the counters of versions
    assert fingerprint(own.model) != before
    weight.data.copy_(kept)
    assert fingerprint(own.model) == before


def test_it_is_of_the_numbers_not_of_where_and_how_they_lie():
    torch.manual_seed(0)
    whole = nn.Linear(40, 30, bias=False)
    turned = nn.Module()
    turned.weight = nn.Parameter(whole.weight.detach().T)  # the same memory, as HookedTransformer has it
    tied = nn.ModuleList([whole, turned])
    spread = nn.Module()
    spread.weight = nn.Parameter(torch.stack([whole.weight.detach()] * 2, dim=-1)[..., 0])  # with gaps between
    again = nn.Linear(40, 30)
    again.weight.data.copy_(whole.weight.data)
    again.bias.data.zero_()  # made where there is none
    assert len({fingerprint(one) for one in (whole, turned, tied, spread, again)}) == 1
    assert fingerprint(whole.bfloat16()) == fingerprint(whole.float()), "the same numbers in another precision"
    assert fingerprint(nn.Linear(40, 30)) != fingerprint(whole)
    assert fingerprint(None) == fingerprint(nn.ReLU()) == "" and fingerprint(whole.to("meta")) == ""


def test_weights_that_begin_at_one_place_are_two():
    whole = nn.Linear(40, 30, bias=False)
    half = nn.Module()
    half.weight = nn.Parameter(whole.weight.detach()[:15])
    gaps = nn.Module()
    gaps.weight = nn.Parameter(whole.weight.detach()[:, :20])
    found = [fingerprint(nn.ModuleList(each)) for each in ([whole], [whole, half], [whole, gaps], [half, gaps])]
    assert len(set(found)) == 4


def test_another_process_finds_the_same():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(lensplug.__file__).parent.parent)!r})\n"
        "import torch; from lensplug.provenance.fingerprint import fingerprint\n"
        "torch.manual_seed(0); print(fingerprint(torch.nn.Linear(40, 30)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    torch.manual_seed(0)
    assert found == fingerprint(nn.Linear(40, 30))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_result_has_the_weights_of_its_run(engine):
    hf_model, processor = llava_onevision()
    own = lensplug.wrap(hf_model, processor, engine=engine, check=False)
    inputs = own.prepare("What is the color?")
    _, cache = own.run_with_cache(inputs, needs=analysis.head_specialization)
    before = fingerprint(own.model)
    next(hf_model.parameters()).data.mul_(2)
    assert analysis.head_specialization(cache, inputs.modality).provenance.weights == before != fingerprint(own.model)


def test_a_cache_of_transformerlens_alone_has_one_too():
    results = [
        analysis.received_attention(run(text_model(seed, **ROTARY), tokens(1, 5))[1]).provenance for seed in (0, 1, 0)
    ]
    assert results[0].weights == results[2].weights != results[1].weights
