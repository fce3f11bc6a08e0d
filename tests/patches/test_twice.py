"""Every patch on a model where one of its kind is in force: it changes nothing more, or is refused; in any order."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from support.beside import given_of, wrapped
from support.built import ENGINES, HOOKED, ONLY_HOOKED
from support.models import QUESTION, largest_difference, llava_onevision, scene, snapshot

import lensplug
from lensplug import LensplugError, patches

OF_HOOKED = ("AttentionRows", "ConfigFix", "EmbeddingInput", "GatedMLPInPlace", "UnwatchedBlocks")
OF_BRIDGE = tuple(name for name in patches.PATCHES if "Bridge" in name) + ("HookNames",)
OF_BOTH = ("CheckpointedBlocks", "LogitDirections", "LogitRows", "MLPByPositions", "PlaceholdersRefused")
ALREADY = {"EmbeddingInput", "GatedMLPInPlace", "LogitDirections", "PlaceholdersRefused", *OF_BRIDGE} - {
    "BridgeAttentionRows", "BridgeUnwatchedBlocks",
}  # fmt: skip
"""In force on lens.model."""
OF_SOME_MODELS = ("BridgeDeepstack", "BridgeRouting")
"""Which change nothing in most."""


@pytest.fixture(scope="module", params=ENGINES)
def case(request):
    """A lens, its inputs, and all that a patch could change of what its model shows."""
    lens = lensplug.wrap(*llava_onevision(), engine=request.param)
    return lens, lens.prepare(QUESTION, images=[scene(48, 48)])


def rows_of(inputs):
    return torch.full((len(inputs), 1), inputs.tokens.shape[1] - 1)


def made(name, lens, inputs):
    """A new patch of that name, as any other user makes it."""
    kind = getattr(patches, name)
    if name == "ConfigFix":
        return kind(lens.model, lens.core.decoder, lens.core.head, lens.core.text_config)
    if name == "BridgeDeepstack":
        return kind(lens.model, lens.core.n_deepstack)
    if name == "PlaceholdersRefused":
        return kind(lens.model, lens.core.placeholder_ids)
    return kind(lens.model, rows_of(inputs)) if name.endswith("Rows") else kind(lens.model)


def shown(lens, inputs):
    """Logits, what hooks were given, attributions, an answer and a gradient."""
    model, fired = lens.model, []
    with torch.no_grad():
        watch = [(lambda name: True, lambda value, hook: fired.append((hook.name, value.clone())))]
        logits = model.run_with_hooks(inputs, fwd_hooks=watch)
        _, cache = model.run_with_cache(inputs)
        parts = cache.decompose_resid()
        if logits.shape[1] == parts.shape[2]:
            fired.append(("attributed", cache.logit_attrs(parts, tokens=5)))
    embeds = inputs.embeds.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(replace(inputs, embeds=embeds))[:, -1, 5].sum(), embeds)
    return [("logits", logits), ("gradient", gradient), *fired]


def same(ours, theirs):
    assert [name for name, _ in ours] == [name for name, _ in theirs], "each hook fires as often"
    for (name, one), (_, other) in zip(ours, theirs, strict=True):
        close(one, other, name)


def close(one, other, name=""):
    """To rounding: kernels may differ in the last bit with where a tensor lies in memory."""
    largest = float(other[other.isfinite()].detach().abs().max()) if one.is_floating_point() else 0
    allowed = 32 * torch.finfo(torch.float32).eps * largest
    torch.testing.assert_close(one, other, atol=allowed, rtol=0, msg=lambda text: f"{name}: {text}")


def patches_of(lens):
    return (*(OF_HOOKED if lens.engine == "hooked_transformer" else OF_BRIDGE), *OF_BOTH)


def test_every_patch_is_tried():
    assert {*OF_HOOKED, *OF_BRIDGE, *OF_BOTH} == set(patches.PATCHES)


@pytest.mark.parametrize("name", patches.PATCHES)
def test_two_of_a_kind_are_one_and_come_off_in_any_order(case, name):
    lens, inputs = case
    if name not in patches_of(lens):
        pytest.skip("of the other engine")
    if name in OF_SOME_MODELS:
        lens = wrapped("qwen3-vl-moe")
        inputs = lens.encode(given_of("qwen3-vl-moe"))
    before, bare = snapshot(lens.model), shown(lens, inputs)
    first, second = made(name, lens, inputs), made(name, lens, inputs)
    first.apply()
    once = shown(lens, inputs)
    if name in ALREADY:
        same(once, bare)
    for order in ((first, second), (second, first)):
        for patch in (first, second, second, first):
            patch.apply()
        assert first.applied and second.applied
        same(shown(lens, inputs), once)
        order[0].remove()
        order[0].remove()
        assert order[1].applied and not order[0].applied
        same(shown(lens, inputs), once)
        order[1].remove()
        order[1].remove()
        assert snapshot(lens.model) == before and not (first.applied or second.applied)
    same(shown(lens, inputs), bare)


def test_the_readmes_form_on_the_model_of_a_lens(case):
    lens, inputs = case
    takes = patches.EmbeddingInput if lens.engine == "hooked_transformer" else patches.BridgeEmbeddingInput
    before = snapshot(lens.model)
    with takes(lens.model), patches.LogitDirections(lens.model):
        logits, cache = lens.model.run_with_cache(inputs.embeds, tokens=inputs.tokens)
    attributed = cache.logit_attrs(cache.decompose_resid(), tokens=5).sum(0)
    assert largest_difference(attributed, logits[..., 5]) < 1e-4 * float(logits.detach().abs().max())
    assert snapshot(lens.model) == before


def test_with_other_rows_it_is_refused_and_nothing_is_changed(case):
    lens, inputs = case
    rows = rows_of(inputs)
    before = snapshot(lens.model)
    with lens.logits_only(rows):
        inside = snapshot(lens.model)
        expected = lens.model(inputs)
        for name in ("LogitRows", "AttentionRows" if lens.engine == "hooked_transformer" else "BridgeAttentionRows"):
            with pytest.raises(LensplugError, match=rf"^{name} is in force on this \w+ already, with other rows"):
                getattr(patches, name)(lens.model, rows - 3).apply()
            assert snapshot(lens.model) == inside
        with pytest.raises(LensplugError, match="already, with other rows"):
            lens.logits_at(inputs, rows - 3)
        with pytest.raises(LensplugError, match="already, with other hidden positions"):
            lens.logits_at(inputs, rows, hidden=inputs.modality.mask("image"))
        close(lens.logits_at(inputs, rows), expected, "the same is the same")
        close(lens.model(inputs), expected)
    assert snapshot(lens.model) == before


def test_what_a_core_is_given_besides_is_not_taken_away(case):
    lens, inputs = case
    if lens.engine != "bridge":
        pytest.skip("of the bridge")
    with patches.BridgeEmbeddingInput(lens.model):
        pass
    with pytest.raises(LensplugError, match="BridgeEmbeddingInput is in force .* with other beside"):
        patches.BridgeEmbeddingInput(lens.model, beside=("position_ids",)).apply()
    close(lens.model(inputs), lens.model(inputs.embeds))


def test_a_copy_knows_what_is_in_force_on_it(case):
    lens, inputs = case
    before, copied = snapshot(lens.model), copy.deepcopy(lens.model)
    expected = copied.tokens_to_residual_directions(5)
    with patches.LogitDirections(copied):
        assert torch.equal(copied.tokens_to_residual_directions(5), expected)
    with patches.LogitRows(copied, rows_of(inputs)):
        assert copied(inputs).shape[1] == 1 and lens.model(inputs).shape[1] > 1
    close(copied(inputs), lens.model(inputs))
    assert snapshot(lens.model) == before


@pytest.mark.skipif(not HOOKED, reason=ONLY_HOOKED)
def test_another_core_stands_on_the_first():
    """ConfigFix nests: the last one counts, and they come off in reverse order."""
    one, other = (lensplug.wrap(llava_onevision(seed)[0], engine="hooked_transformer") for seed in (0, 1))
    tokens = torch.arange(9)[None]
    expected = [lens.model(tokens) for lens in (one, other)]
    base = one.model
    before = snapshot(base)
    outer, inner = (
        patches.ConfigFix(base, lens.core.decoder, lens.core.head, lens.core.text_config) for lens in (one, other)
    )
    with outer:
        torch.testing.assert_close(base(tokens), expected[0], atol=1e-5, rtol=0)
        with inner:
            torch.testing.assert_close(base(tokens), expected[1], atol=1e-5, rtol=0)
            with pytest.raises(LensplugError, match="later patch first"):
                outer.remove()
        torch.testing.assert_close(base(tokens), expected[0], atol=1e-5, rtol=0)
    assert snapshot(base) == before
