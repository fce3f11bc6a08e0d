"""The proof on load says, by name, every fault that is put into a wrapped core; and a whole core passes."""

from __future__ import annotations

import pytest
from support.mutations import ALONE, FAMILIES, GIVEN, MUTATIONS, NORMS, RESIDUAL, Mutation

import lensplug
from lensplug import engines
from lensplug.errors import LensplugError
from lensplug.proof.measures import attempted
from lensplug.proof.prove import prove

STEP_OF = {
    "final norm and head alone": ALONE,
    RESIDUAL: "run of text",
    f"{RESIDUAL} (left-padded)": "left padding",
    "edit of attn.hook_z": "edits",
    "edit of attn.hook_pattern": "edits",
    "gradients of the embeddings": "gradients",
    "greedy tokens behind a key-value cache": "generation",
}
"""Check -> the step of the proof that makes it, where it has another name."""


ALONE_IN_ITS_STEP = {GIVEN, NORMS}
"""Checks whose steps need no run of text before them."""


def lens_of(family: str):
    return lensplug.wrap(FAMILIES[family](), engine="bridge", check=False)


def proof_of(lens):
    return prove(lens.hf_model, lens.core, lens.model, engine=lens.engine, lens=lens)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_core_that_is_whole_passes(family):
    proof = proof_of(lens_of(family))
    assert proof.passed, proof
    assert max(check.number / check.tolerance for check in proof.checks if check.number is not None) < 0.5


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_each_fault_is_found_by_name(mutation: Mutation, monkeypatch):
    lens = lens_of(mutation.family)
    mutation.make(lens.model)
    # Most steps depend on the run of text alone: the others would take most of the time.
    wanted = {STEP_OF.get(mutation.check, mutation.check)}
    if mutation.check not in ALONE_IN_ITS_STEP:
        wanted.add("run of text")

    def chosen(names, make):
        return attempted(names, make) if wanted.intersection(names) else []

    monkeypatch.setattr("lensplug.proof.prove.attempted", chosen)
    proof = proof_of(lens)
    failed = {check.name: check for check in proof.checks if check.outcome == "failed"}
    assert not proof.passed
    assert mutation.check in failed, proof
    if mutation.layer is not None:
        assert failed[mutation.check].where.startswith(f"layer {mutation.layer}"), failed[mutation.check]


def test_there_are_enough():
    assert len(MUTATIONS) >= 30
    assert len({mutation.family for mutation in MUTATIONS}) >= 6


def test_wrap_refuses_a_core_that_fails_by_layer_and_number(monkeypatch):
    build = engines.build

    def faulty(*args, **kwargs):
        name, model = build(*args, **kwargs)
        MUTATIONS[0].make(model)
        return name, model

    monkeypatch.setattr(engines, "build", faulty)
    with pytest.raises(
        LensplugError, match=r"failed the proof on load \(each layer alone failed .*e-0\d .* at layer 1\)"
    ):
        lensplug.wrap(FAMILIES["Llama"](), engine="bridge", prove=True, check=False)
