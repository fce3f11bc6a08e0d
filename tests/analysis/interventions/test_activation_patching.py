"""Activation patching against TransformerLens's own loops, and on pictures that differ in colour only."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from transformer_lens import patching

import lensplug
from lensplug import Groups, LensplugError, MultimodalInput, analysis, views
from lensplug.inputs.aligned_positions import counterparts
from lensplug.positions.tokens import single_token
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import make_voice

COLOR, SHAPE = "What is the color? Answer single word.", "What is the shape? Answer single word."
PAIR = ("Red", "Blue")

Pair = tuple[MultimodalInput, MultimodalInput]
"""Clean and corrupt."""


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


def picture(color, size=(48, 48), shape="square"):
    """The same picture in another colour."""
    return draw_scene(random.Random(3), size=size, color=color, shape=shape, place="left").image


@pytest.fixture(scope="module")
def pair(lens):
    return tuple(lens.prepare(COLOR, images=[picture(color)]) for color in ("red", "blue"))


def difference(lens):
    ids = [single_token(word, lens.tokenizer) for word in PAIR]
    return lambda logits: (logits[:, -1, ids[0]] - logits[:, -1, ids[1]]).mean()


@pytest.mark.parametrize(
    "activation, by, theirs",
    [
        ("resid_pre", "position", patching.get_act_patch_resid_pre),
        ("attn_out", "position", patching.get_act_patch_attn_out),
        ("mlp_out", "position", patching.get_act_patch_mlp_out),
        ("z", "head", patching.get_act_patch_attn_head_out_all_pos),
        ("q", "head", patching.get_act_patch_attn_head_q_all_pos),
        ("v", "head", patching.get_act_patch_attn_head_v_all_pos),
        ("pattern", "head", patching.get_act_patch_attn_head_pattern_all_pos),
        ("z", "head_and_position", patching.get_act_patch_attn_head_out_by_pos),
        ("pattern", "head_and_position", patching.get_act_patch_attn_head_pattern_by_pos),
    ],
)
def test_equals_transformer_lens(lens, activation, by, theirs):
    clean, corrupt = (  # short prompts: every position of every head is a run
        lens.encode({"input_ids": lens.tokenizer(text, return_tensors="pt")["input_ids"]})
        for text in ("What is the color?", "What is the shape?")
    )
    _, cache = lens.run_with_cache(clean)
    with torch.no_grad():
        expected = theirs(lens.model, corrupt, cache, difference(lens))  # runs on the inputs, not on their tokens
    found = analysis.activation_patching(lens, clean, corrupt, PAIR, activation=activation, by=by)
    values = found.values[0]  # [layer group head]
    if by == "head":
        values = values[:, 0]
    elif by == "position":
        values = values[:, :, 0]
    elif activation == "pattern":
        values = values.transpose(1, 2)  # theirs are [layer head position]
    torch.testing.assert_close(values, expected, atol=2e-4, rtol=0)
    assert float(values.std()) > 1e-3, "this test can fail"


def test_all_positions_bring_the_clean_answer_back(lens, pair: Pair):
    clean, corrupt = pair
    together = torch.zeros(corrupt.tokens.shape[1], dtype=torch.long)
    for activation in ("resid_pre", "resid_mid", "resid_post"):
        found = analysis.activation_patching(lens, clean, corrupt, PAIR, activation=activation, groups=together)
        assert found.values.shape == (1, lens.model.cfg.n_layers, 1, 1)
        torch.testing.assert_close(found.recovered, torch.ones_like(found.values), atol=1e-4, rtol=0)
    assert abs(float(found.clean - found.corrupt)) > 1
    same = analysis.activation_patching(lens, corrupt, corrupt, PAIR, groups=together)
    torch.testing.assert_close(same.values, same.corrupt.view(1, 1, 1, 1).expand_as(same.values), atol=1e-4, rtol=0)
    assert bool(same.recovered.isnan().all()), "there is no way to go"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_between_two_that_are_the_same_there_is_nothing_to_recover(lens, dtype):
    """Alone, and as one of a batch, though the other prompts have other padding; where there is a way, it is kept."""
    own = lensplug.wrap(copy.deepcopy(lens.hf_model).to(dtype), lens.processor, check=False)
    red, blue = (own.prepare(COLOR, images=[picture(color)]) for color in ("red", "blue"))
    groups = torch.zeros(red.tokens.shape[1], dtype=torch.long)
    for target in (PAIR, lambda logits: logits[:, -1, :5].float().softmax(dim=-1)[:, 3]):
        for activation in ("resid_post", "pattern"):
            options: dict[str, Any] = {"groups": groups, "activation": activation, "layers": (0, 0)}
            same = analysis.activation_patching(own, red, red, target, **options)
            assert bool(same.recovered.isnan().all()) and bool(same.values.isfinite().all())
            if target == PAIR:
                other = analysis.activation_patching(own, red, blue, target, **options)
                assert bool(other.recovered.isfinite().all())
    images = [[[picture("red")], [picture(color)]] for color in ("red", "blue")]
    clean, corrupt = (own.prepare([COLOR, COLOR + " Now."], images=each) for each in images)
    groups = torch.where(corrupt.modality.mask("image"), 0, -1)
    recovered = analysis.activation_patching(own, clean, corrupt, PAIR, groups=groups, layers=(0, 1)).recovered
    assert bool(recovered[0].isnan().all()) and bool(recovered[1].isfinite().all()), "one identical pair of two"
    first = first_of(own.prepare([COLOR, COLOR + " Now." * 3], images=images[0]))
    groups = torch.where(first.modality.mask("image"), 0, -1)
    assert first.tokens.shape[1] > red.tokens.shape[1]
    found = analysis.activation_patching(own, red, first, PAIR, groups=groups, layers=(0, 1))
    assert bool(found.recovered.isnan().all()), "the same behind other padding"
    assert float(found.rounding) < 0.1 * float(found.clean.abs())


def first_of(batch):
    """The first example of a batch, with the padding that it has there."""
    modality = batch.modality
    own = {name: getattr(modality, name)[:1] for name in ("labels", "special", "media_index", "user_words")}
    return replace(
        batch, embeds=batch.embeds[:1], tokens=batch.tokens[:1], attention_mask=batch.attention_mask[:1],
        modality=replace(modality, **own), str_tokens=batch.str_tokens[:1],
    )  # fmt: skip


def test_what_rounding_explains_is_the_scale_of_the_logits(lens, pair: Pair):
    """By hand: 2^-23 x the largest logit that is read x sqrt(2 layers + 1)."""
    found = analysis.activation_patching(lens, *pair, PAIR, groups=torch.zeros(pair[0].tokens.shape[1]).long())
    largest = max(float(lens.run_with_cache(one, logit_positions=[-1])[0].abs().max()) for one in pair)
    layers = lens.model.cfg.n_layers
    assert float(found.rounding) == pytest.approx(2**-23 * largest * (2 * layers + 1) ** 0.5, rel=1e-4)
    unlike = replace(found, clean=found.corrupt + 2 * found.rounding)
    assert bool(unlike.recovered.isfinite().all()), "twice that is a way to go"


@pytest.mark.parametrize("size", [(48, 48), (96, 48)])
def test_image_positions_carry_the_colour_and_not_the_shape(lens, size):
    ids = {word: single_token(word, lens.tokenizer) for word in ("Red", "Blue", "Square")}
    for prompt, target in ((COLOR, PAIR), (SHAPE, ("Square", "Ring"))):
        clean, corrupt = (lens.prepare(prompt, images=[picture(color, size)]) for color in ("red", "blue"))
        image = torch.where(corrupt.modality.mask("image")[0], 0, -1)
        words = torch.where(corrupt.modality.mask("image")[0], -1, 0)
        found = analysis.activation_patching(lens, clean, corrupt, target, groups=image)
        if prompt == COLOR:
            assert float(found.clean) > 0 > float(found.corrupt), "red and blue"
            assert float(found.recovered[0, 0]) == pytest.approx(1, abs=1e-4), "nothing else differs at the input"
            assert float(found.values[0, 0]) > 0, "the answer is red now"
            assert abs(float(found.recovered[0, -1])) < 0.2, "by the last layer the answer has left the image"
            others = analysis.activation_patching(lens, clean, corrupt, target, groups=words)
            assert abs(float(others.recovered[0, 0])) < 1e-4 and float(others.recovered[0, -1]) > 0.8
        else:
            top = lens.run_with_cache(corrupt, names_filter=[], logit_positions=[-1])[0].argmax(-1)
            assert int(top) == ids["Square"]
            assert bool((found.values > 0).all()), "the shape stays, whatever layer the other colour comes in"


def test_a_padded_batch_is_its_examples(lens):
    prompts = [COLOR, "What is the color? Answer in a phrase."]
    sizes = [(48, 48), (48, 48)]
    reds, blues = (
        lens.prepare(prompts, images=[[picture(color, size)] for size in sizes]) for color in ("red", "blue")
    )
    unequal = analysis.activation_patching(lens, reds, blues, PAIR, groups="modality", layers=(0, 0))
    for activation in ("resid_pre", "pattern"):
        groups = torch.where(blues.modality.mask("image"), 0, -1)
        found = analysis.activation_patching(lens, reds, blues, PAIR, groups=groups, activation=activation)
        for example, prompt in enumerate(prompts):
            clean, corrupt = (lens.prepare(prompt, images=[picture(color)]) for color in ("red", "blue"))
            own = torch.where(corrupt.modality.mask("image"), 0, -1)
            single = analysis.activation_patching(lens, clean, corrupt, PAIR, groups=own, activation=activation)
            torch.testing.assert_close(found.values[example], single.values[0], atol=2e-4, rtol=0)
            if activation == "resid_pre":
                alone = analysis.activation_patching(lens, clean, corrupt, PAIR, groups="modality", layers=(0, 0))
                count = len(alone.labels[0])
                assert unequal.labels[example] == alone.labels[0]
                torch.testing.assert_close(unequal.values[example, :, :count], alone.values[0], atol=2e-4, rtol=0)
                assert bool(unequal.values[example, :, count:].isnan().all())
                assert len(views.activation_patching(unequal, example=example).data[0].x) == count
    assert len(unequal.labels[0]) < len(unequal.labels[1]) == unequal.values.shape[2]
    assert len(unequal.to_dataframe()) == sum(map(len, unequal.labels))
    total = analysis.activation_patching(
        lens, reds, blues, lambda logits: logits[0, -1, 5], groups=groups, layers=(0, 0)
    )
    assert total.values.shape[0] == 2 and torch.equal(total.values[0], total.values[1])


def test_groups_keep_their_numbers(lens, pair: Pair):
    """Also where they come in another order in the prompt, or one has no position."""
    image = pair[1].modality.mask("image")[0]
    numbers, none = torch.where(image, 4, 2), torch.where(image, -1, 0)
    found = analysis.activation_patching(lens, *pair, PAIR, groups=numbers, layers=(0, 0))
    assert found.values.shape == (1, 1, 5, 1)
    assert float(found.recovered[0, 0, 4, 0]) == pytest.approx(1, abs=1e-4)
    assert float(found.recovered[0, 0, 2, 0]) == pytest.approx(0, abs=1e-4)
    assert bool(found.values[0, 0, [0, 1, 3]].isnan().all())
    assert found.to_dataframe()["label"].tolist() == ["group 2", "group 4"]
    assert list(views.activation_patching(found).data[0].x) == ["group 2", "group 4"]
    named = [Groups(torch.where(image, 0, 1), ["the picture", "words"])]
    found = analysis.activation_patching(lens, *pair, PAIR, groups=named, layers=(0, 0))
    assert found.labels == (("the picture", "words"),)
    assert float(found.recovered[0, 0, 0, 0]) == pytest.approx(1, abs=1e-4), "though words come first"
    reds, blues = (lens.prepare([COLOR] * 2, images=[[picture(color)]] * 2) for color in ("red", "blue"))
    each = torch.stack([torch.where(image, 1, 0), none])
    found = analysis.activation_patching(lens, reds, blues, PAIR, groups=each, layers=(0, 0))
    assert float(found.recovered[0, 0, 1, 0]) == pytest.approx(1, abs=1e-4) and bool(found.values[1, 0, 1].isnan())


def test_positions_are_aligned_through_padding(lens):
    alone = lens.prepare(COLOR, images=[picture("red")])
    batch = lens.prepare([COLOR, COLOR + " " + SHAPE], images=[[picture("blue")], [picture("blue")]])
    pads = int((batch.attention_mask[0] == 0).sum())
    assert pads > 0
    first = first_of(batch)
    found = counterparts(alone, first)[0]
    assert found[batch.attention_mask[0] == 1].tolist() == list(range(alone.tokens.shape[1]))
    assert found[batch.attention_mask[0] == 0].tolist() == [-1] * pads
    for activation in ("resid_pre", "pattern"):
        patched, same = (
            analysis.activation_patching(
                lens,
                alone,
                corrupt,
                PAIR,
                activation=activation,
                groups=torch.where(corrupt.modality.mask("image"), 0, -1),
            )
            for corrupt in (first, lens.prepare(COLOR, images=[picture("blue")]))
        )
        torch.testing.assert_close(patched.values, same.values, atol=2e-4, rtol=0)


def test_between_two_sounds():
    lens = lensplug.tiny.audio_llama()
    voices = [
        make_voice(random.Random(4), emotion=emotion, words="sad", transcript=True) for emotion in ("happy", "sad")
    ]
    clean, corrupt = (lens.prepare(voice.prompt("sound"), audio=[voice.audio]) for voice in voices)
    found = analysis.activation_patching(lens, clean, corrupt, ("Happy", "Sad"), groups="modality")
    sound = [index for index, label in enumerate(found.labels[0]) if "[" in label and "s]" in label]
    assert sound and float(found.clean) > float(found.corrupt)
    assert float(found.recovered[0, 0, sound, 0].abs().max()) > 0.02
    assert set(found.by_position()) == {f"layer {layer}" for layer in found.layers}
    views.sound_overlay(found.by_position()["layer 0"].nan_to_num(), corrupt)


def test_the_target_may_be_a_function_of_all_logits(lens, pair: Pair):
    options: dict[str, Any] = {"groups": torch.where(pair[1].modality.mask("image"), 0, -1), "layers": (0, 1)}
    word = analysis.activation_patching(lens, *pair, PAIR, **options)
    function = analysis.activation_patching(lens, *pair, difference(lens), **options)
    torch.testing.assert_close(function.values, word.values, atol=2e-4, rtol=0)
    assert "function" in function.provenance.convention and "logit" in word.provenance.convention
    with pytest.raises(LensplugError, match="makes 3 numbers"):
        analysis.activation_patching(lens, *pair, lambda logits: logits[0, :3, 0], **options)
    with pytest.raises(LensplugError, match="NaN"):
        analysis.activation_patching(lens, *pair, lambda logits: logits.mean() * torch.nan, **options)


def test_the_table_and_the_pictures(lens, pair: Pair):
    regions = views.group_positions(pair[1].modality, pair[1].str_tokens, blocks=1)
    by_position = analysis.activation_patching(lens, *pair, PAIR, layers=(0, 1), groups=[regions])
    table = by_position.to_dataframe()
    assert len(table) == by_position.values.numel() and set(table["head"]) == {-1} and set(table["layer"]) == {0, 1}
    row = table.iloc[5]
    assert row["recovered"] == pytest.approx(float(by_position.recovered[0, 0, 5, 0]))
    views.image_overlay(by_position, pair[1])
    by_head = analysis.activation_patching(lens, *pair, PAIR, activation="z", by="head", layers=(0, 1))
    both = analysis.activation_patching(
        lens, *pair, PAIR, activation="z", by="head_and_position", layers=(0, 0), groups=[regions]
    )
    for result in (by_position, by_head, both):
        heat = views.activation_patching(result).data[0]
        assert heat.z.shape[0] == len(result.layers) and len(heat.x) == heat.z.shape[1]
    assert by_position.labels[0] == tuple(regions.names)
    x = views.activation_patching(by_position).data[0].x
    assert len(set(x)) == len(x), "plotly draws what has one name in one place"
    with pytest.raises(LensplugError, match="expected .*group_positions"):
        analysis.activation_patching(lens, *pair, PAIR, groups=[regions, regions])
    one = views.activation_patching(both, head=1).data[0]
    torch.testing.assert_close(torch.tensor(one.z), both.recovered[0, :, :, 1])
    with pytest.raises(LensplugError, match="head is 9"):
        views.activation_patching(both, head=9)
    with pytest.raises(LensplugError, match="by='position'"):
        by_head.by_position()


@pytest.mark.parametrize("activation", ["resid_pre", "resid_mid", "z", "pattern"])
def test_places_side_by_side_are_places_one_by_one(lens, activation):
    """The library's own loop, one place after another from the first layer on, whatever the batch."""
    prompts = [COLOR, COLOR + " Now."]
    clean, corrupt = (lens.prepare(prompts, images=[[picture(color)]] * 2) for color in ("red", "blue"))
    attended = corrupt.attention_mask.bool()
    groups = torch.where(attended, (torch.arange(corrupt.shape[1]) * 7 + 3) % 5, -1)  # scattered, in no order
    ids = [single_token(word, lens.tokenizer) for word in PAIR]
    _, cache = lens.run_with_cache(clean)

    def metric(logits):
        found.append(logits[:, -1, ids[0]] - logits[:, -1, ids[1]])
        return found[-1].mean()

    def setter(corrupted, index, clean):
        queries = (groups == index[1])[:, None, :, None] if activation == "pattern" else groups == index[1]
        where = queries.view(*queries.shape, *[1] * (corrupted.ndim - queries.ndim))
        return torch.where(where, clean, corrupted)

    found: list[torch.Tensor] = []
    table = pd.DataFrame([(layer, group) for layer in (0, 2, 5) for group in range(5)], columns=["layer", "group"])
    with torch.no_grad():
        patching.generic_activation_patch(lens.model, corrupt, cache, metric, setter, activation, index_df=table)
    expected = torch.stack(found, dim=1).view(2, 3, 5)
    for batch in (None, 1, 2, 3):
        result = analysis.activation_patching(
            lens, clean, corrupt, PAIR, activation=activation, groups=groups, batch=batch, progress=False
        )
        torch.testing.assert_close(result.values[:, [0, 2, 5], :, 0], expected, atol=1e-4, rtol=0)
    assert float(expected.std()) > 0.1, "this test can fail"


def test_the_bar_is_silent_where_it_is_asked_to_be(lens, pair: Pair, capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    groups = torch.zeros(pair[0].tokens.shape[1]).long()
    analysis.activation_patching(lens, *pair, PAIR, groups=groups, layers=(0, 0), progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "options, said",
    [
        ({"batch": 0}, "batch is 0, expected at least 1"),
        ({"activation": "resid"}, "activation is 'resid'"),
        ({"by": "layer"}, "by is 'layer'"),
        ({"by": "head"}, "has no heads"),
        ({"activation": "z", "by": "head", "groups": "modality"}, "leave groups out"),
        ({"groups": "image"}, "groups is 'image'"),
        ({"groups": torch.full((5,), 0)}, "one number for each position"),
        ({"layers": (0, 99)}, "layers is"),
        ({"position": 999}, "out of range|position"),
    ],
)
def test_bad_options_are_refused(lens, pair: Pair, options, said):
    with pytest.raises(LensplugError, match=said):
        analysis.activation_patching(lens, *pair, PAIR, **options)


def test_what_cannot_be_aligned_is_refused(lens, pair: Pair):
    _, corrupt = pair
    nothing = torch.full((corrupt.tokens.shape[1],), -1)
    with pytest.raises(LensplugError, match="nothing to patch"):
        analysis.activation_patching(lens, *pair, PAIR, groups=nothing)
    with pytest.raises(LensplugError, match=r"cannot be aligned: .*of image 0"):
        analysis.activation_patching(lens, lens.prepare(COLOR, images=[picture("red", (120, 120))]), corrupt, PAIR)
    with pytest.raises(LensplugError, match="cannot be aligned"):
        analysis.activation_patching(lens, lens.prepare(COLOR + " Now.", images=[picture("red")]), corrupt, PAIR)
    wide, tall = (lens.prepare(COLOR, images=[picture("red", size)]) for size in ((96, 48), (48, 96)))
    with pytest.raises(LensplugError, match="cut otherwise|cannot be aligned"):
        counterparts(wide, tall)
    with pytest.raises(LensplugError, match="give pairs"):
        counterparts(lens.prepare([COLOR, COLOR], images=[[picture("red")], [picture("blue")]]), corrupt)
