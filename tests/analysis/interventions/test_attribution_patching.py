"""Attribution patching against plain hooks and autograd, and against patching where that is linear."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats

import lensplug
from lensplug import LensplugError, MultimodalInput, analysis, views
from lensplug.inputs.aligned_positions import counterparts
from lensplug.positions.tokens import single_token
from lensplug.tiny.scenes import draw_scene

COLOR = "What is the color? Answer single word."
PAIR = ("Red", "Blue")
Pair = tuple[MultimodalInput, MultimodalInput]
"""Clean and corrupt."""
HOOKS = {
    "resid_pre": "hook_resid_pre", "resid_mid": "hook_resid_mid", "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v",
    "z": "attn.hook_z", "pattern": "attn.hook_pattern",
}  # fmt: skip


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


def picture(color):
    return draw_scene(random.Random(3), size=(48, 48), color=color, shape="square", place="left").image


@pytest.fixture(scope="module")
def pair(lens):
    return tuple(lens.prepare(COLOR, images=[picture(color)]) for color in ("red", "blue"))


@pytest.fixture(scope="module")
def padded(lens):
    """Two examples, the first with padding on its left."""
    prompts = [COLOR, "What is the color? Answer in a phrase."]
    return tuple(lens.prepare(prompts, images=[[picture(color)]] * 2) for color in ("red", "blue"))


def by_hand(lens, clean, corrupt, activation, *, share=0.0):
    """(a_clean - a_corrupt) * dm/da of each layer: TransformerLens's hooks and autograd, whole runs, a layer at a time.

    Args:
        lens: The lens.
        clean: Inputs with the same padding as those of corrupt.
        corrupt: Inputs.
        activation: Its short name.
        share: How far the layer is on its way to the clean one, where gradients are taken.
    """
    ids = [single_token(word, lens.tokenizer) for word in PAIR]
    names = [f"blocks.{layer}.{HOOKS[activation]}" for layer in range(lens.model.cfg.n_layers)]
    caches = []
    for inputs in (clean, corrupt):
        with torch.no_grad():
            caches.append(lens.model.run_with_cache(inputs, names_filter=names)[1])
    products = []
    for name in names:
        high, low = (cache[name] for cache in caches)
        leaf = torch.lerp(low, high, share).requires_grad_()
        with torch.enable_grad():
            logits = lens.model.run_with_hooks(corrupt, fwd_hooks=[(name, lambda value, hook, leaf=leaf: leaf)])
            target = (logits[:, -1, ids[0]] - logits[:, -1, ids[1]]).sum()
        products.append((high - low) * torch.autograd.grad(target, leaf)[0])
    return products


def same_by_position(found, expected, real):
    """Each position alone; groups are numbered without padding."""
    for example, groups in enumerate(found.groups):
        assert torch.equal(groups >= 0, real[example])
        each = found.attribution[example][:, groups[real[example]]]
        torch.testing.assert_close(each, expected[example][:, real[example]], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", HOOKS)
def test_equals_plain_hooks_and_autograd(lens, padded: Pair, activation):
    """Of batches with left padding; heads and positions together and alone."""
    clean, corrupt = padded
    assert int((corrupt.attention_mask[0] == 0).sum()) > 0 and torch.equal(
        counterparts(clean, corrupt)[1], torch.arange(clean.shape[1])
    )
    products = torch.stack(by_hand(lens, clean, corrupt, activation), dim=1).sum(dim=-1)  # [example layer ...]
    if activation == "pattern":
        products = products.transpose(2, 3)
    real = corrupt.attention_mask.bool()
    is_head = products.ndim == 4
    if is_head:
        found = analysis.attribution_patching(lens, clean, corrupt, PAIR, activation=activation, by="head")
        expected = (products * real[:, None, :, None]).sum(dim=2)
        torch.testing.assert_close(found.attribution[:, :, 0], expected, atol=2e-4, rtol=1e-4)
        found = analysis.attribution_patching(lens, clean, corrupt, PAIR, activation=activation, by="head_and_position")
        same_by_position(found, products, real)
        products = products.sum(dim=3)
    found = analysis.attribution_patching(lens, clean, corrupt, PAIR, activation=activation)
    same_by_position(found, products[..., None], real)
    assert float(found.attribution.nan_to_num().abs().max()) > 1e-2, "this test can fail"
    together = torch.where(corrupt.modality.mask("image"), 0, -1)
    found = analysis.attribution_patching(
        lens, clean, corrupt, PAIR, activation=activation, groups=together, layers=(1, 1)
    )  # fmt: skip
    expected = (products * (together == 0)[:, None]).sum(dim=2)[:, 1:2]
    torch.testing.assert_close(found.attribution[:, :, 0, 0], expected, atol=2e-4, rtol=1e-4)


def test_steps_average_gradients_on_the_way_of_a_layer(lens, pair: Pair):
    clean, corrupt = pair
    for activation in ("z", "pattern"):
        at_each = torch.stack(
            [torch.stack(by_hand(lens, clean, corrupt, activation, share=step / 2), dim=1) for step in range(2)]
        ).sum(dim=-1)
        at_each = at_each.sum(dim=3 if activation == "pattern" else 4) if at_each.ndim == 5 else at_each
        found = analysis.attribution_patching(lens, clean, corrupt, PAIR, activation=activation, steps=2)
        torch.testing.assert_close(found.attribution[..., 0], at_each.mean(dim=0), atol=5e-4, rtol=1e-3)
        assert not torch.allclose(at_each[0], at_each.mean(dim=0), atol=1e-2), "this test can fail"


@pytest.mark.parametrize("activation", ["resid_pre", "pattern"])
def test_many_steps_add_up_to_what_patching_a_layer_changes(lens, pair: Pair, activation):
    """Integrated gradients are complete, also where positions of text are left alone."""
    image = pair[1].modality.mask("image")[0]
    positions = torch.where(image, torch.arange(len(image)) // 4, -1)
    options: dict[str, Any] = {"activation": activation, "layers": (1, 1)}
    together = analysis.activation_patching(lens, *pair, PAIR, groups=torch.where(image, 0, -1), **options)
    change, totals = float(together.change), []
    for steps in (1, 24):
        found = analysis.attribution_patching(lens, *pair, PAIR, groups=positions, steps=steps, **options)
        totals.append(float(found.attribution.nansum()))
    assert totals[1] == pytest.approx(change, rel=0.05, abs=0.05)
    assert abs(totals[1] - change) < 0.5 * abs(totals[0] - change), "one step is another number"


def test_exact_where_the_target_is_linear(lens, padded: Pair):
    """The last layer's stream, where the final norm divides by a constant."""
    clean, corrupt = padded
    options: dict[str, Any] = {"activation": "resid_post", "layers": (lens.model.cfg.n_layers - 1,) * 2}
    last = torch.full(corrupt.tokens.shape, -1)
    last[:, -1] = 0
    with lens.model.hooks(fwd_hooks=[("ln_final.hook_scale", lambda scale, hook: torch.full_like(scale, 2.0))]):
        estimated = analysis.attribution_patching(lens, clean, corrupt, PAIR, groups=last, **options)
        exact = analysis.activation_patching(lens, clean, corrupt, PAIR, groups=last, **options)
    torch.testing.assert_close(estimated.attribution, exact.change, atol=1e-4, rtol=1e-4)
    assert float(exact.change.abs().min()) > 0.1


def test_tiny_differences_are_patching_to_first_order(lens, pair: Pair):
    clean, corrupt = pair
    errors = []
    for share in (0.004, 0.002):
        near = replace(corrupt, embeds=torch.lerp(corrupt.embeds, clean.embeds, share))
        options: dict[str, Any] = {"groups": torch.where(corrupt.modality.mask("image"), 0, -1)}
        exact = analysis.activation_patching(lens, near, corrupt, PAIR, **options).change
        errors.append((analysis.attribution_patching(lens, near, corrupt, PAIR, **options).change - exact).abs())
        assert float(errors[-1].max()) < 0.1 * float(exact.abs().max())
    assert float(errors[1].max()) < 0.4 * float(errors[0].max()), "of second order: a quarter"


def test_verified_places_are_those_of_activation_patching(lens, padded: Pair):
    clean, corrupt = padded
    options: dict[str, Any] = {"activation": "z", "by": "head"}
    found = analysis.attribution_patching(lens, clean, corrupt, PAIR, verify=5, **options)
    exact = analysis.activation_patching(lens, clean, corrupt, PAIR, **options)
    measured = ~found.verified.isnan()
    assert measured.flatten(1).sum(dim=1).tolist() == [5, 5]
    torch.testing.assert_close(found.verified[measured], exact.values[measured], atol=1e-4, rtol=1e-4)
    for example, places in enumerate(measured):
        strength = found.attribution[example].abs()
        assert float(strength[places].min()) >= float(strength[~places].max())
        correlation = stats.spearmanr(found.attribution[example][places], exact.change[example][places]).statistic
        assert float(found.rank_correlation[example]) == pytest.approx(correlation)
    table = found.to_dataframe()
    assert table["verified"].notna().sum() == 10
    everything = analysis.attribution_patching(lens, clean, corrupt, PAIR, verify=10**6, layers=(0, 0), **options)
    torch.testing.assert_close(everything.verified, exact.values[:, :1], atol=1e-4, rtol=1e-4)
    fewest = analysis.attribution_patching(lens, clean, corrupt, PAIR, verify=1, layers=(0, 0), **options)
    assert bool(fewest.rank_correlation.isnan().all()) and int((~fewest.verified.isnan()).sum()) == 2
    nothing = analysis.attribution_patching(lens, clean, corrupt, PAIR, layers=(0, 0), **options)
    assert bool(nothing.verified.isnan().all()) and bool(nothing.rank_correlation.isnan().all())


def test_its_order_is_that_of_patching(lens, pair: Pair):
    groups = torch.where(pair[1].modality.mask("image")[0], torch.arange(pair[1].shape[1]) // 4, -1)
    for activation in ("attn_out", "mlp_out"):
        found = analysis.attribution_patching(lens, *pair, PAIR, activation=activation, groups=groups, verify=20)
        assert float(found.rank_correlation) > 0.5


def test_a_function_is_a_target(lens, pair: Pair, padded: Pair):
    ids = [single_token(word, lens.tokenizer) for word in PAIR]
    words = analysis.attribution_patching(lens, *pair, PAIR, activation="mlp_out")
    function = analysis.attribution_patching(
        lens, *pair, lambda logits: (logits[:, -1, ids[0]] - logits[:, -1, ids[1]]).mean(), activation="mlp_out"
    )
    torch.testing.assert_close(function.attribution, words.attribution, atol=1e-4, rtol=1e-4)
    with pytest.raises(LensplugError, match="one number of 2 examples"):
        analysis.attribution_patching(lens, *padded, lambda logits: logits.mean())
    with pytest.raises(LensplugError, match="has no gradient"):
        analysis.attribution_patching(lens, *pair, lambda logits: logits.detach().mean())


def test_leaves_nothing_behind(lens, pair: Pair):
    before = {name: parameter.requires_grad for name, parameter in lens.model.named_parameters()}
    with torch.no_grad():
        first = analysis.attribution_patching(lens, *pair, PAIR, layers=(0, 0))
    again = analysis.attribution_patching(lens, *pair, PAIR, layers=(0, 0))
    assert torch.equal(first.attribution, again.attribution) and not again.attribution.requires_grad
    assert {name: parameter.requires_grad for name, parameter in lens.model.named_parameters()} == before
    assert not any(point.fwd_hooks or point.bwd_hooks for point in lens.model.hook_dict.values())


def test_figure(lens, pair: Pair):
    found = analysis.attribution_patching(lens, *pair, PAIR, activation="z", by="head")
    heat = views.activation_patching(found).data[0]
    torch.testing.assert_close(torch.tensor(heat.z).float(), found.recovered[0, :, 0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 10**9}, "steps is 1000000000, expected at most 1000"),
        ({"verify": -1}, "verify is -1"),
        ({"by": "head"}, "has no heads"),
        ({"layers": (0, 99)}, "layers"),
        ({"activation": "nothing"}, "activation"),
        ({"groups": torch.full((3,), 0)}, "groups"),
    ],
)
def test_refusals(lens, pair: Pair, options, message):
    with pytest.raises(LensplugError, match=message):
        analysis.attribution_patching(lens, *pair, PAIR, **options)
    with pytest.raises(LensplugError, match="cannot be aligned"):
        analysis.attribution_patching(lens, pair[0], lens.prepare("Now. " + COLOR, images=[picture("red")]), PAIR)
