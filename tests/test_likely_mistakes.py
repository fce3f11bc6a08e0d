"""What users are likely to write instead: where only one thing can be meant, it is done."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.models import largest_difference, three_prompts
from transformer_lens.utilities import get_act_name

from lensplug import LensplugError, analysis, views
from lensplug.positions.by_modality import mask_at, modality_of
from lensplug.reductions.mixing import Mixing


@pytest.fixture(scope="module")
def cache(lens, inputs):
    return lens.run_with_cache(inputs)[1]


@pytest.fixture(scope="module")
def batch(lens):
    return three_prompts(lens)


def test_inputs_where_their_map_is_meant(cache, inputs):
    calls: dict[str, Callable[[Any], Any]] = {
        "head_specialization": lambda m: analysis.head_specialization(cache, m).mass,
        "attention_flow": lambda m: analysis.attention_flow(cache, groups="modality", modality=m).values,
        "flow names": lambda m: analysis.attention_flow(cache, groups="modality", modality=m).modalities,
        "received_attention": lambda m: analysis.received_attention(cache, modality=m).modalities,
        "group_positions": lambda m: views.group_positions(m, inputs.str_tokens).of_position,
    }
    for name, call in calls.items():
        one, other = call(inputs), call(inputs.modality)
        same = torch.equal(one.nan_to_num(), other.nan_to_num()) if isinstance(one, torch.Tensor) else one == other
        assert same, name
    assert views.group_positions(inputs).names == views.group_positions(inputs.modality, inputs.str_tokens).names


def test_what_is_no_map_is_refused(lens, cache, inputs):
    with pytest.raises(LensplugError, match="modality is a Answer, expected .* answer.inputs"):
        modality_of(lens.generate(inputs, max_new_tokens=1))
    with pytest.raises(LensplugError, match="expected inputs.modality, or the inputs"):
        modality_of({"image": 3})


def test_a_modality_where_positions_are_chosen(lens, inputs):
    image = inputs.modality.mask("image")
    without = [lens.without(inputs, one) for one in ("image", ["image", "video"], "media", image)]
    assert all(torch.equal(one.embeds, without[-1].embeds) for one in without)
    rows = torch.tensor([[inputs.shape[1] - 1]])
    hidden = [lens.logits_at(inputs, rows, hidden=one) for one in ("image", image)]
    assert torch.equal(*hidden) and largest_difference(hidden[0], lens.logits_at(inputs, rows)) > 0.01
    maps = {name: torch.randn(inputs.shape[1]) for name in ("one", "other")}
    agreed = analysis.agreement(maps, positions="image", modality=inputs)
    assert agreed.count == int(image.sum()) and "image positions" in agreed.provenance.convention
    assert torch.equal(agreed.rank_correlation, analysis.agreement(maps, positions=image[0]).rank_correlation)
    relevance = torch.randn(1, inputs.shape[1])
    curves = [
        analysis.deletion_curve(lens, inputs, relevance, 5, among=one, steps=2, draws=0) for one in ("image", image)
    ]
    assert torch.equal(curves[0].most_first, curves[1].most_first)
    both = analysis.deletion_curve(lens, inputs, relevance, 5, among=("image", "text"), steps=1, draws=0)
    assert int(both.deleted) == inputs.shape[1]
    _, kept = lens.run_with_cache(inputs, needs="logit_lens", residual_positions="image", query_positions=[])
    assert torch.equal(kept.residual_positions[0], inputs.modality.image_positions())


def test_a_modality_that_is_not_there_is_refused(lens, batch, inputs):
    for wrong in ("imgae", ["image", "imgae"]):
        with pytest.raises(LensplugError, match="'imgae', expected (one of )?'text', 'image'.* or a (mask|list)"):
            lens.without(inputs, wrong)
    with pytest.raises(LensplugError, match="example 2 has no audio|example 0 has no audio"):
        analysis.deletion_curve(lens, inputs, torch.randn(1, inputs.shape[1]), 5, among="audio")
    with pytest.raises(LensplugError, match="nothing says which position is what: give a mask"):
        lens.logits_at(inputs.embeds, torch.tensor([[3]]), hidden="image")
    with pytest.raises(LensplugError, match=r"means \d+, \d+, 0 positions of the examples, expected the same number"):
        lens.run_with_cache(batch, residual_positions="image")
    maps = {name: torch.randn(4) for name in ("one", "other")}
    with pytest.raises(LensplugError, match="needs to know which position is what: give modality=inputs"):
        analysis.agreement(maps, positions="image")
    with pytest.raises(LensplugError, match="the modality map is"):
        mask_at("image", inputs, (1, 3), "positions")


def test_analyses_by_their_names(lens, inputs):
    several = (["logit_lens", analysis.head_specialization], [analysis.logit_lens, "head_specialization"])
    found = [set(lens.run_with_cache(inputs, needs=needs)[1]) for needs in several]
    assert found[0] == found[1] == set(lens.run_with_cache(inputs, names_filter=_either)[1])
    assert set(lens.run_with_cache(inputs, needs="logit_lens")[1]) == set(
        lens.run_with_cache(inputs, needs=analysis.logit_lens)[1]
    )
    assert lens.estimate(inputs, needs="logit_lens") == lens.estimate(inputs, needs=analysis.logit_lens)


def _either(name):
    return analysis.logit_lens.needs(name) or analysis.head_specialization.needs(name)


@pytest.mark.parametrize("needs", ["logit_lense", ["head_specialization", "logit_lense"], analysis.deletion_curve])
def test_what_is_no_analysis_of_a_cache_is_refused_with_the_list(lens, inputs, needs):
    with pytest.raises(LensplugError, match="needs has .*names: activations, attention_flow, .*logit_lens"):
        lens.run_with_cache(inputs, needs=needs)


LAYERS = range(6)
SHORT_FORMS = {
    "resid_post": [get_act_name("resid_post", layer) for layer in LAYERS],
    "pattern": [get_act_name("pattern", layer) for layer in LAYERS],
    "attn.hook_z": [get_act_name("z", layer) for layer in LAYERS],
    "hook_resid_mid": [get_act_name("resid_mid", layer) for layer in LAYERS],
    "embed": ["hook_embed"],
    ("resid_post", 1): [get_act_name("resid_post", 1)],
    ("z", -1): [get_act_name("z", 5)],
    ("scale", 1, "ln2"): [get_act_name("scale", 1, "ln2")],
    ("scale", 0): [get_act_name("scale", 0, kind) for kind in ("ln1", "ln2")],
    ("resid_pre", "z"): [get_act_name(name, layer) for name in ("resid_pre", "z") for layer in LAYERS],
    (("v", 0), "hook_embed"): [get_act_name("v", 0), "hook_embed"],
}


@pytest.mark.parametrize("short", SHORT_FORMS, ids=str)
def test_transformer_lenss_short_names(lens, inputs, short):
    kept = lens.run_with_cache(inputs, names_filter=short)[1]
    assert sorted(kept) == sorted(SHORT_FORMS[short])


def test_short_names_wherever_hooks_are_named(lens, inputs):
    seen = []
    note = lambda value, hook: seen.append(hook.name)  # noqa: E731
    lens.run_with_hooks(inputs, fwd_hooks=[("resid_post", note), (("z", 1), note), (lambda n: n == "hook_embed", note)])
    assert seen == ["hook_embed", "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"] + [
        f"blocks.{layer}.hook_resid_post" for layer in range(1, 6)
    ]
    _, cache, grads = lens.run_with_gradients(inputs, target=5, names_filter=("resid_post", 1))
    assert list(cache) == list(grads) == ["blocks.1.hook_resid_post"]
    whole = [get_act_name("resid_post", layer) for layer in LAYERS]
    assert lens.estimate(inputs, names_filter="resid_post") == lens.estimate(inputs, names_filter=whole)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resid_posts", "'resid_posts' is no hook of this model. Did you mean 'resid_post'"),
        (("resid_post", 9), r"the model has layers 0 to 5"),
        (("paterrn", 1), "is no hook of this model. Did you mean 'pattern'"),
        ("result", "fires only after lens.model.set_use_attn_result"),
    ],
)
def test_short_names_that_the_model_does_not_have(lens, inputs, name, message):
    unchecked = getattr(type(lens).run_with_cache, "__wrapped__", type(lens).run_with_cache)
    with pytest.raises(LensplugError, match=message):
        unchecked(lens, inputs, names_filter=name)


def test_heads_with_their_scores(cache, inputs):
    top = analysis.head_specialization(cache, inputs).top("image", 3)
    pairs = [(layer, head) for layer, head, _ in top]
    for analyse in (analysis.attention_rollout, analysis.attention_flow):
        options = {} if analyse is analysis.attention_rollout else {"groups": "modality", "modality": inputs}
        of_top, of_pairs = (analyse(cache, heads=heads, **options) for heads in (top, pairs))
        assert torch.equal(of_top.values, of_pairs.values), analyse
        assert of_top.provenance == of_pairs.provenance, "the scores are no part of how it was made"
    assert Mixing(heads=[3, (1, 2, 0.5)]).heads == (3, (1, 2))


@pytest.mark.parametrize("one", [(1, 2, 0.5, 3), (1,), (1.5, 2), (True, 2), 0.5])
def test_what_is_no_head(one):
    unchecked = Mixing.__new__(Mixing)
    object.__setattr__(unchecked, "heads", (one,))
    for name, value in {"head_fusion": "mean", "residual": 0.5, "discard": 0.0}.items():
        object.__setattr__(unchecked, name, value)
    with pytest.raises(LensplugError, match=r"heads has .* expected heads of every layer.*heads=result.top"):
        unchecked.__post_init__()


def test_a_result_where_its_relevance_is_meant(lens, cache, inputs):
    rollout, several = (analysis.attention_rollout(cache, rows=rows) for rows in (-1, [-1, -2]))
    received = analysis.received_attention(cache, layer=1)
    for result, row in ((rollout, rollout.lift[:, 0]), (received, received.values)):
        curves = [analysis.deletion_curve(lens, inputs, one, 5, steps=3, draws=0) for one in (result, row)]
        assert torch.equal(curves[0].most_first, curves[1].most_first)
        assert not torch.equal(curves[0].most_first, curves[0].least_first)
    tokens, by_hand = (views.colored_tokens(one, inputs).body for one in (received, received.values[0].nan_to_num(0)))
    assert tokens.count("values") == by_hand.count("values")
    for call in (
        lambda: analysis.deletion_curve(lens, inputs, several, 5),
        lambda: views.colored_tokens(several, inputs),
        lambda: analysis.agreement({"one": several, "other": rollout}),
    ):
        with pytest.raises(LensplugError, match=r"is a Rollout with 2 maps .*by_position\(\)\['into position 130'\]"):
            call()
    with pytest.raises(LensplugError, match="HeadSpecialization has no value for each position"):
        analysis.deletion_curve(lens, inputs, analysis.head_specialization(cache, inputs), 5)


def test_colored_tokens_of_a_lift_have_the_mean_of_a_region(cache, inputs):
    """Of even attention the lift is 1 everywhere: a region of ten patches does not read 10."""
    rollout = analysis.attention_rollout(cache, rows=-1)
    object.__setattr__(rollout, "lift", torch.ones_like(rollout.lift))
    body = views.colored_tokens(rollout, inputs).body
    listed = re.search(r'"values": \[([^\]]*)\]', body)
    assert listed
    numbers = {float(one) for one in listed[1].split(",")}
    assert numbers == {1.0}
