"""The cache of a lens knows its positions, whatever TransformerLens does to it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.models import scene, three_prompts
from transformer_lens import ActivationCache

import lensplug
from lensplug import LensplugError, analysis
from lensplug.reductions import names as hook_names

REDUCED = ["rollout", "modality_mass", "head_mean"]


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


@pytest.fixture(scope="module")
def right(lens):
    """Three prompts of different lengths, padded at the right: -1 of the tensor is padding in two of them."""
    outputs = three_prompts(lens).model_inputs
    length = outputs["attention_mask"].shape[1]
    order = outputs["attention_mask"].argsort(dim=1, descending=True, stable=True)  # padding behind
    moved = {name: outputs[name].gather(1, order) for name in ("input_ids", "attention_mask")}
    made = lens.encode({**outputs, **moved})
    assert made.attention_mask.shape[1] == length and made.attention_mask[:, -1].sum() < 3
    return made


def run(lens, inputs, **options) -> Any:
    return lens.run_with_cache(inputs, **options)[1]


def each_result(cache, modality) -> dict[str, Any]:
    """What an analysis that counts from the end reads of a cache."""
    return {
        "logit_lens": analysis.logit_lens(cache, positions=-1).rank,
        "rollout": analysis.attention_rollout(cache, rows=-1).values,
        "heads": _by_modality(analysis.head_specialization(cache, modality, query=-1)),
    }


def _by_modality(heads: Any) -> torch.Tensor:
    """Mass with an entry for text and for image; zeros for one that is not there."""
    found = {name: heads.mass[..., index].nan_to_num(0) for index, name in enumerate(heads.modalities)}
    nothing = torch.zeros_like(next(iter(found.values())))
    return torch.stack([found.get(name, nothing) for name in ("text", "image")], dim=-1)


@pytest.mark.parametrize("keep", [{}, {"keep": REDUCED, "residual_positions": [-1]}], ids=["whole", "reduced"])
@pytest.mark.parametrize("example", [0, 1, 2])
def test_a_sliced_cache_counts_from_its_own_last_position(lens, right, keep, example):
    cache = run(lens, right, **keep)
    expected = each_result(cache, right.modality)
    for chosen in ([example], (example, example + 1), torch.tensor([example])):
        sliced = cache.apply_slice_to_batch_dim(chosen)
        assert len(sliced.attention_mask) == 1 and sliced.str_tokens == (cache.str_tokens[example],)
        one = right[example : example + 1].modality
        for name, value in each_result(sliced, one).items():
            torch.testing.assert_close(value[0], expected[name][example], rtol=1e-5, atol=1e-6)
    without = cache.apply_slice_to_batch_dim(example)
    assert not without.has_batch_dim
    for name, value in each_result(without, one).items():
        torch.testing.assert_close(value[0], expected[name][example], rtol=1e-5, atol=1e-6)
    assert torch.equal(each_result(cache, right.modality)["logit_lens"], expected["logit_lens"])  # as it was


def test_moved_copied_and_pickled(lens, right):
    cache = run(lens, right, keep=REDUCED, query_positions=[-1], residual_positions=[-1])
    expected = each_result(cache, right.modality)
    model, cache.model = cache.model, None
    copies = [copy.copy(cache), copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)), cache.to("cpu")]
    for other in copies:
        other.model = model
        for name, value in each_result(other, right.modality).items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no second device")
def test_moved_to_another_device(lens, right):
    cache = run(lens, right, keep=REDUCED, query_positions=[-1]).to("cuda")
    assert cache.attention_mask.device.type == cache.query_positions.device.type == "cuda"


def test_without_its_batch_axis_a_reduced_cache_gives_the_same(lens, right):
    one = lens.prepare("What is the color? Answer single word.", images=[scene(48, 48, 1)])
    cache = run(lens, one, keep=REDUCED, residual_positions=[-1])
    expected = each_result(cache, one.modality)
    for name, value in each_result(cache.remove_batch_dim(), one.modality).items():
        assert torch.equal(value, expected[name]), name


def test_an_activation_that_is_replaced_takes_what_was_reduced_of_it_along(lens, right):
    cache = run(lens, right, keep=REDUCED, query_positions=None, names_filter=analysis.attention_rollout.needs)
    whole = run(lens, right, names_filter=analysis.attention_rollout.needs)
    whole["pattern", 0] = edited = torch.eye(whole["pattern", 0].shape[-1]).expand_as(whole["pattern", 0])
    assert whole["blocks.0.attn.hook_pattern"] is edited
    cache["blocks.0.attn.hook_z"] = torch.zeros(1)
    assert hook_names.ROLLOUT in cache.cache_dict
    cache[f"blocks.{0}.attn.hook_pattern"] = torch.zeros_like(cache["pattern", 0])
    assert not {hook_names.ROLLOUT, hook_names.head_mean(0), hook_names.modality_mass(0)} & set(cache.keys())
    assert hook_names.head_mean(1) in cache.cache_dict
    with pytest.raises(LensplugError, match=r"is \[3, .* in this cache, the new value \[1\]"):
        cache["pattern", -1] = torch.zeros(1)


def test_a_cut_cache_refuses_what_reads_by_position(lens, right):
    cut = run(lens, right, residual_positions=[-1, -2])
    calls = {
        "accumulated_resid": lambda cache: cache.accumulated_resid(pos_slice=-1),
        "decompose_resid": lambda cache: cache.decompose_resid(pos_slice=-1),
        "stack_head_results": lambda cache: cache.stack_head_results(pos_slice=-1),
        "stack_activation": lambda cache: cache.stack_activation("resid_pre"),
        "apply_ln_to_stack": lambda cache: cache.apply_ln_to_stack(torch.zeros(1, 3, 64), pos_slice=-1),
        "logit_attrs": lambda cache: cache.logit_attrs(torch.zeros(1, 3, 64), tokens=1, pos_slice=-1),
        "get_full_resid_decomposition": lambda cache: cache.get_full_resid_decomposition(pos_slice=-1),
    }
    for name, call in calls.items():
        with pytest.raises(LensplugError, match=f"{name} reads a cache by position.*residual_positions"):
            call(cut)
    whole = run(lens, right)
    assert torch.equal(calls["stack_activation"](whole), torch.stack([whole["resid_pre", i] for i in range(6)]))


def test_a_batch_of_transformer_lens_alone_does_not_guess_where_it_ends(lens, right):
    with torch.no_grad():
        _, theirs = lens.model.run_with_cache(right)
    alone = ActivationCache(dict(theirs.items()), theirs.model)
    mask = right.attention_mask
    expected = analysis.logit_lens(run(lens, right), positions=-1).rank
    assert torch.equal(analysis.logit_lens(alone, positions=-1, attention_mask=mask).rank, expected)
    for call in (
        lambda: analysis.logit_lens(alone, positions=-1),
        lambda: analysis.attention_rollout(alone, rows=[0, -1]),
        lambda: analysis.attention_from(alone),
        lambda: analysis.attention_flow(alone),
    ):
        with pytest.raises(LensplugError, match="a cache of 3 examples that .* made alone.*attention_mask="):
            call()
    assert analysis.logit_lens(alone, positions=3).rank.shape[0] == 3  # from the left, nothing is guessed


def test_a_cache_that_would_lose_what_it_knows_is_refused(lens, right):
    with pytest.raises(LensplugError, match=r"return_cache_object=False is not taken: dict\(cache.items"):
        run(lens, right, return_cache_object=False)


def test_the_map_of_other_examples_is_refused(lens, right):
    """Of a shape it fits: two examples that change places, and another one alone."""
    _, cache = lens.run_with_cache(right)
    for chosen in ([1, 0, 2], [0, 2, 1], [2]):
        others = cache.apply_slice_to_batch_dim(chosen)
        for name, value in maps_read(others, right[chosen].modality).items():
            assert torch.isfinite(value).any(), name
        wrong = right[: len(chosen)].modality
        with pytest.raises(LensplugError, match="in the same order"):
            analysis.head_specialization(others, wrong, query=-1)
        with pytest.raises(LensplugError, match="in the same order"):
            analysis.received_attention(others, layer=0, modality=wrong)
        with pytest.raises(LensplugError, match="in the same order"):
            analysis.attention_flow(others, row=-1, groups="modality", modality=wrong)


def maps_read(cache, modality):
    """What reads a modality map beside a cache."""
    return {
        "head_specialization": analysis.head_specialization(cache, modality, query=-1).mass,
        "received_attention": analysis.received_attention(cache, layer=0, modality=modality).values,
        "attention_flow": analysis.attention_flow(cache, row=-1, groups="modality", modality=modality).values,
    }


def test_the_batch_axis_of_several_examples_stays(lens, right):
    _, cache = lens.run_with_cache(right, names_filter="resid_post")
    with pytest.raises(LensplugError, match="holds 3 examples.*apply_slice_to_batch_dim"):
        cache.remove_batch_dim()
    assert cache.has_batch_dim
    assert cache.apply_slice_to_batch_dim(0).remove_batch_dim().has_batch_dim is False
