"""Edits of activations against plain hooks that do the same, on every path; the model is after them what it was."""

from __future__ import annotations

import pytest
import torch
from support.built import ENGINES
from support.models import largest_difference, snapshot, text_model, text_tokens

import lensplug
from lensplug import LensplugError, analysis
from lensplug.interventions import Ablate, Knockout, Replace, Scale, Steer
from lensplug.interventions.layers_and_heads import in_their_order

LENGTH = 18


@pytest.fixture(scope="module", params=ENGINES)
def lens(request):
    return lensplug.wrap(text_model("qwen2"), engine=request.param)


@pytest.fixture(scope="module")
def inputs(lens):
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :4] = 0
    return lens.encode({"input_ids": text_tokens(LENGTH, 2), "attention_mask": mask})


@pytest.fixture(scope="module")
def other(lens):
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :4] = 0
    return lens.encode({"input_ids": text_tokens(LENGTH, 2, seed=7), "attention_mask": mask})


def direction():
    return torch.randn(32, generator=torch.Generator().manual_seed(1))


def heads_times(factor, heads):
    def change(z, hook):
        z = z.clone()
        z[:, :, heads] *= factor
        return z

    return change


def cases(lens, other):
    """Edits, and plain hooks that do the same."""
    unit = direction() / direction().norm()

    def steer(resid, hook):
        return resid + 0.3 * resid.norm(dim=-1, keepdim=True) * unit

    def add(resid, hook):
        return resid - 2.0 * direction()

    def zero(out, hook):
        return torch.zeros_like(out)

    def few(post, hook):
        post = post.clone()
        post[..., [3, 7]] = 0
        return post

    _, cache = lens.run_with_cache(other)
    means = {"blocks.1.hook_mlp_out": cache["mlp_out", 1].mean(dim=(0, 1))}

    def mean(out, hook):
        return means["blocks.1.hook_mlp_out"].expand_as(out)

    def at_six(resid, hook):
        resid = resid.clone()
        resid[:, 6] = cache["resid_pre", 2][:, 6]
        return resid

    def two_heads(z, hook):
        z = z.clone()
        z[:, :, [0, 3]] = cache["z", 1][:, :, [0, 3]]
        return z

    return {
        "steer": (
            Steer(direction(), layers=[0, 1], scale=0.3),
            [(("resid_post", 0), steer), (("resid_post", 1), steer)],
        ),
        "steer-absolute": (Steer(direction(), layers=1, scale=-2.0, relative=False), [(("resid_post", 1), add)]),
        "scale": (Scale(heads=[(1, 0), (1, 2)], factor=2.5), [(("z", 1), heads_times(2.5, [0, 2]))]),
        "heads": (Ablate(heads=[1], layers=[0, 2]), [(("z", layer), heads_times(0.0, [1])) for layer in (0, 2)]),
        "layer": (Ablate("attn_out", layers=1), [(("attn_out", 1), zero)]),
        "neurons": (Ablate(neurons={2: [3, 7]}), [(("post", 2), few)]),
        "mean": (Ablate("mlp_out", layers=1, method="mean", values=means), [(("mlp_out", 1), mean)]),
        "resample": (Ablate(heads=[(1, 0), (1, 3)], method="resample", values=cache), [(("z", 1), two_heads)]),
        "replace": (Replace(cache, at="resid_pre", layers=2, positions=[6]), [(("resid_pre", 2), at_six)]),
    }


NAMES = ["steer", "steer-absolute", "scale", "heads", "layer", "neurons", "mean", "resample", "replace"]


@pytest.fixture(scope="module")
def edits(lens, other):
    found = cases(lens, other)
    assert list(found) == NAMES
    return found


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_is_its_plain_hook_on_every_path(lens, inputs, edits, name):
    edit, fwd_hooks = edits[name]
    before = snapshot(lens.model)
    real, last = inputs.attention_mask, torch.full((2, 1), LENGTH - 1)
    with torch.no_grad():
        plain, expected = lens.model(inputs), lens.run_with_hooks(inputs, fwd_hooks=fwd_hooks)
    assert largest_difference(plain, expected, real) > 0.05
    with torch.no_grad(), lens.intervene(edit):
        assert largest_difference(lens.model(inputs), expected, real) < 1e-4
        assert largest_difference(lens.logits_at(inputs, last)[:, 0], expected[:, -1]) < 1e-4
        logits, cache = lens.run_with_cache(inputs)
        assert largest_difference(logits, expected, real) < 1e-4
        logits, _ = lens.run_with_cache(inputs, query_positions=[-1], logit_positions=[-1])
        assert largest_difference(logits[:, 0], expected[:, -1]) < 1e-4
        logits, _, _ = lens.run_with_gradients(inputs, target=3)
        assert largest_difference(logits, expected, real) < 1e-4
        logits, _, _ = lens.run_with_gradients(inputs, target=3, keep="cam")
        assert largest_difference(logits[:, -1], expected[:, -1]) < 1e-4
        answer = lens.generate(inputs, max_new_tokens=1)
    assert torch.equal(answer.tokens[:, 0], expected[:, -1].argmax(-1))
    assert cache.interventions == (str(edit),)
    assert snapshot(lens.model) == before


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("resample", "replace")])
def test_an_answer_is_edited_at_every_step(lens, inputs, edits, name):
    edit, fwd_hooks = edits[name]
    with lens.intervene(edit):
        answer = lens.generate(inputs, max_new_tokens=5)
    assert torch.equal(answer.tokens, lens.generate(inputs, max_new_tokens=5, fwd_hooks=fwd_hooks).tokens)
    with lens.hooks(fwd_hooks):
        assert torch.equal(answer.tokens, lens.generate(inputs, max_new_tokens=5).tokens)


def test_places_of_the_prompt_are_left_alone_in_later_steps(lens, inputs):
    """What acts at "last" acts at every step, what acts at a position only there."""
    big = {"direction": direction(), "layers": 1, "scale": 3.0}
    once, always = (Steer(positions=place, **big) for place in ([LENGTH - 1], "last"))
    with lens.intervene(once):
        of_once = lens.generate(inputs, max_new_tokens=6).tokens
    with lens.intervene(always):
        of_always = lens.generate(inputs, max_new_tokens=6).tokens
    seen = []

    def at_first_pass(resid, hook):
        seen.append(resid.shape[1])
        step = 3.0 * resid.norm(dim=-1, keepdim=True) * direction() / direction().norm()
        return torch.cat([resid[:, :-1], (resid + step)[:, -1:]], dim=1) if resid.shape[1] > 1 else resid

    expected = lens.generate(inputs, max_new_tokens=6, fwd_hooks=[(("resid_post", 1), at_first_pass)])
    assert seen == [LENGTH, 1, 1, 1, 1, 1] and torch.equal(of_once, expected.tokens)
    assert not torch.equal(of_once, of_always) and torch.equal(of_once[:, 0], of_always[:, 0])


def test_caches_hold_what_the_edit_made_and_results_say_so(lens, inputs):
    edit = Steer(direction(), layers=1, scale=0.3)
    _, before = lens.run_with_cache(inputs)
    with lens.intervene(edit) as acted:
        _, cache = lens.run_with_cache(inputs)
    assert torch.equal(cache["resid_post", 0], before["resid_post", 0])
    change = (cache["resid_post", 1] - before["resid_post", 1]).norm(dim=-1) / before["resid_post", 1].norm(dim=-1)
    torch.testing.assert_close(change[0], torch.full((LENGTH,), 0.3))
    assert not bool(change[1, :4].any()), "padding is left alone"
    table = acted.to_dataframe()
    assert table["hook"].tolist() == ["blocks.1.hook_resid_post"] and abs(table["relative_change"][0] - 0.3) < 1e-4
    result = analysis.logit_lens(cache, positions=-1)
    assert result.provenance.options["interventions"] == str(edit)
    plain = analysis.logit_lens(before, positions=-1)
    assert "interventions" not in plain.provenance.options
    with pytest.raises(LensplugError, match="interventions"):
        type(plain).combine([plain, result])


def test_the_order_is_that_of_writing_and_outer_scopes_come_first(lens, inputs):
    """Steering and then scaling is not scaling and then steering."""
    _, cache = lens.run_with_cache(inputs)
    constant = {"blocks.1.hook_resid_post": torch.ones(32)}
    put, add = Replace(cache["resid_post", 0], at="resid_post", layers=1), Steer(direction(), layers=1, scale=0.5)
    assert constant
    with lens.intervene(put, add):
        _, first = lens.run_with_cache(inputs)
    with lens.intervene(put), lens.intervene(add):
        _, nested = lens.run_with_cache(inputs)
    with lens.intervene(add), lens.intervene(put):
        _, second = lens.run_with_cache(inputs)
    assert torch.equal(first["resid_post", 1], nested["resid_post", 1])
    assert not torch.equal(first["resid_post", 1], second["resid_post", 1])
    torch.testing.assert_close(second["resid_post", 1][0], cache["resid_post", 0][0])
    assert nested.interventions == (str(put), str(add))


def test_nothing_is_left_when_something_raises(lens, inputs):
    before = snapshot(lens.model)

    def breaks(resid, hook):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError), lens.intervene(Steer(direction()), Knockout(from_=[6], to="last")):
        lens.generate(inputs, fwd_hooks=[("resid_post", breaks)])
    with pytest.raises(RuntimeError), lens.hooks([(("resid_post", 1), breaks)]):
        lens.run_with_cache(inputs)
    assert snapshot(lens.model) == before
    assert not any("_unseen_keys" in block.attn.__dict__ for block in lens.model.blocks)


def test_a_run_may_follow_another_in_one_scope(lens, inputs, other):
    """Places are resolved for each run, also after one that failed."""
    with lens.intervene(Steer(direction(), layers=0, positions=[8])) as acted:
        with pytest.raises(LensplugError, match="out of range"):
            lens.model(inputs[:, :6])
        lens.run_with_cache(inputs)
        lens.run_with_cache(other[0:1])
    assert acted.runs == 2


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: Steer(torch.zeros(32)), "zero, or holds NaN"),
        (lambda: Steer(torch.ones(7)), r"expected a tensor \[32\]"),
        (lambda: Scale(heads=[(1, 9)], factor=0.0), "heads 0 to 3"),
        (lambda: Scale(heads=None, factor=float("nan")), "expected a number"),
        (lambda: Ablate(), "given nothing"),
        (lambda: Ablate("attn_out", heads=[1]), "output and heads"),
        (lambda: Ablate(heads=[1], method="mean"), "needs values="),
        (lambda: Ablate(heads=[1], values={}), "needs no values"),
        (lambda: Ablate(neurons=[(0, 999)]), "which has 0 to 47"),
        (lambda: Ablate(heads=[1], method="mean", values={"a": torch.ones(2)}), "values have no blocks.0.attn.hook_z"),
        (lambda: Replace(torch.ones(2, 5, 32), layers=1), "with the same positions"),
        (lambda: Replace(torch.ones(2, LENGTH, 32)), "give one layer, or a cache"),
        (lambda: Replace({}, heads=[1]), "has no heads"),
        (lambda: "Knockout", "is no edit"),
        (lambda: Knockout, "is no edit"),
    ],
)
def test_refusals(lens, inputs, edit, message):
    before = snapshot(lens.model)
    with pytest.raises(LensplugError, match=message), lens.intervene(edit()):
        lens.model(inputs)
    assert snapshot(lens.model) == before


def test_what_never_fires_is_an_error(lens, inputs):
    """Its layer is not reached."""
    with lens.intervene(Steer(direction(), layers=[0, 2])), pytest.raises(LensplugError, match="did not act at"):
        lens.model(inputs, stop_at_layer=1)


def test_the_check_is_of_the_model_as_it_is(lens, inputs):
    with lens.intervene(Steer(direction())), pytest.raises(LensplugError, match="is in force"):
        lens.check(inputs)


def test_unknown_hooks_are_refused(lens, inputs):
    for names in ("resid_pots", ("z", 9)):
        with pytest.raises(LensplugError), lens.hooks([(names, lambda value, hook: value)]):
            pass
    with (
        pytest.raises(LensplugError, match="take no hook"),
        lens.hooks([(lambda name: False, lambda value, hook: value)]),
    ):
        pass


def test_directions_belong_to_layers_in_the_order_given(lens, inputs):
    two = torch.stack([direction(), direction().flip(0)])
    with torch.no_grad(), lens.intervene(Steer(two, layers=[2, 0], scale=0.5)):
        found = lens.model(inputs)
    one_by_one = [Steer(two[1], layers=0, scale=0.5), Steer(two[0], layers=2, scale=0.5)]
    with torch.no_grad(), lens.intervene(*one_by_one):
        assert torch.equal(found, lens.model(inputs))
    with lens.intervene(Steer(two, layers=[-1, 2])), pytest.raises(LensplugError, match="names a layer twice"):
        lens.model(inputs)


def test_heads_by_layer(lens, inputs):
    with torch.no_grad(), lens.intervene(Ablate(heads={1: [2, 3]})):
        found = lens.model(inputs)
    with torch.no_grad(), lens.intervene(Ablate(heads=[(1, 2), (1, 3)])):
        assert torch.equal(found, lens.model(inputs))


def test_a_whole_name_says_its_layer(lens, inputs, other):
    _, cache = lens.run_with_cache(other)
    pairs = [
        (Replace(cache, at="blocks.1.hook_resid_post"), Replace(cache, at="resid_post", layers=1)),
        (Replace(cache, at="blocks.2.attn.hook_z", heads=[0, 3]), Replace(cache, at="z", heads=[(2, 0), (2, 3)])),
        (Replace(cache, at="blocks.2.attn.hook_z", heads={2: [1]}), Replace(cache, at="z", layers=2, heads=1)),
        (Replace(cache["mlp_out", 0], at="blocks.0.hook_mlp_out", layers=0), Replace(cache, at="mlp_out", layers=0)),
    ]
    with torch.no_grad():
        plain = lens.model(inputs)
        for whole, short in pairs:
            with lens.intervene(whole):
                found = lens.model(inputs)
            with lens.intervene(short):
                assert torch.equal(lens.model(inputs), found)
            assert largest_difference(plain, found, inputs.attention_mask) > 0.05
    refused = {
        "leave the layers out": [
            Replace(cache, at="blocks.1.hook_resid_post", layers=2),
            Replace(cache, at="blocks.1.attn.hook_z", heads=[(0, 1), (1, 1)]),
        ],
        "which this model has not": [Replace(cache, at="blocks.9.hook_resid_post")],
        "is of no layer": [Replace(cache, at="hook_embed")],
    }
    for message, edits in refused.items():
        for edit in edits:
            with pytest.raises(LensplugError, match=message), lens.intervene(edit):
                lens.model(inputs)


def test_a_mean_is_no_cache(lens, inputs):
    _, cache = lens.run_with_cache(inputs)
    edit = Ablate("mlp_out", method="mean", values=cache)
    with lens.intervene(edit), pytest.raises(LensplugError, match="a cache is for method='resample'"):
        lens.model(inputs)


def test_scopes_that_are_left_in_another_order_leave_nothing(lens, inputs):
    before = snapshot(lens.model)
    outer, inner = lens.intervene(Steer(direction(), scale=0.5)), lens.intervene(Scale(heads=[(0, 1)], factor=3.0))
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    with torch.no_grad():
        found = lens.model(inputs)
    _, cache = lens.run_with_cache(inputs)
    assert cache.interventions == (str(Scale(heads=[(0, 1)], factor=3.0)),)
    inner.__exit__(None, None, None)
    assert snapshot(lens.model) == before
    with torch.no_grad(), lens.intervene(Scale(heads=[(0, 1)], factor=3.0)):
        assert torch.equal(found, lens.model(inputs))


@pytest.mark.parametrize("layers", [iter([1]), slice(1, 3), 1.0, True])
def test_what_is_no_layers_is_refused(layers):
    """An iterator would be used up by the first run."""
    with pytest.raises(LensplugError, match="expected a layer, a list of them"):
        in_their_order(layers, 6)


OTHER_SHAPES = {
    "pattern": (Replace(torch.ones(1, 4, LENGTH, LENGTH), at="pattern", layers=1), "of pairs of positions"),
    "its whole name": (Replace(torch.ones(1, 4, LENGTH, LENGTH), at="blocks.1.attn.hook_pattern"), "pairs of pos"),
    "of no layer": (Replace(torch.ones(1, LENGTH, 32), at="embed"), "is of no layer: expected 'resid_pre'"),
    "the final norm": (Replace(torch.ones(1, LENGTH, 32), at="ln_final.hook_normalized"), "is of no layer"),
    "too narrow": (Replace(torch.ones(1, LENGTH, 7), layers=1), r"are \[1, 18, 7\], .* expected \[32\]"),
    "one number": (Replace(torch.ones(1, LENGTH, 1), layers=1), r"expected \[32\]"),
    "keys of every query head": (
        Replace(torch.ones(1, LENGTH, 4, 8), at="k", layers=1), "one head for several queries"),
    "a narrow mean": (
        Ablate("mlp_out", layers=1, method="mean", values={"blocks.1.hook_mlp_out": torch.ones(7)}), r"are \[7\]"),
    "narrow activations": (
        Ablate("mlp_out", layers=1, method="resample", values={"blocks.1.hook_mlp_out": torch.ones(1, LENGTH, 7)}),
        r"expected \[32\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_SHAPES)
def test_values_of_another_shape_are_refused_and_never_broadcast(lens, inputs, case):
    edit, message = OTHER_SHAPES[case]
    before = lens.model(inputs)
    with pytest.raises(LensplugError, match=message), lens.intervene(edit):
        lens.model(inputs)
    assert torch.equal(lens.model(inputs), before)


def test_words_are_of_the_values_that_are_put_in(lens, inputs, other):
    _, cache = lens.run_with_cache(other)
    said = str(Ablate("mlp_out", layers=1, method="resample", values=cache))
    assert "blocks.1.hook_mlp_out tensor" in said and "hook_k" not in said and "blocks.0" not in said
    later = {name: value + (name == "blocks.2.hook_resid_pre") for name, value in cache.items()}
    assert str(Replace(cache)) != str(Replace(later))
