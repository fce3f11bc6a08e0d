"""Knockout against Hugging Face with a mask of four axes, and against minus infinity written by a plain hook."""

from __future__ import annotations

import random

import pytest
import torch
from support.beside import FAMILIES, given_of, wrapped
from support.built import ENGINES
from support.models import largest_difference, relative_difference, scene, text_model, text_tokens

import lensplug
from lensplug import LensplugError
from lensplug.interventions import Knockout
from lensplug.tiny.scenes import draw_scene

LENGTH = 24
CORES = ["qwen2", "llama-wide-heads", "mistral-window", "qwen2-window-some-layers", "qwen3", "llama-attention-bias"]
LEFT = slice(0, 5)
QUESTION = "What is the color? Answer single word."


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def tiny(engine):
    trained = lensplug.tiny.llava_onevision()
    return lensplug.wrap(trained.hf_model, trained.processor, engine=engine)


def text_lens(engine, name="qwen2"):
    return lensplug.wrap(text_model(name), engine=engine)


def encoded(lens, *, padded=True):
    """Two examples, the second padded at its left."""
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    if padded:
        mask[1, LEFT] = 0
    return lens.encode({"input_ids": text_tokens(LENGTH, 2), "attention_mask": mask})


def edges(inputs, keys, queries, *, own=False):
    """Where a query is kept from a key, [batch query key]."""
    length = inputs.shape[1]
    blocked = torch.zeros(len(inputs), length, length, dtype=torch.bool)
    blocked[:, queries] = torch.isin(torch.arange(length), torch.as_tensor(keys))
    if not own:
        blocked &= ~torch.eye(length, dtype=torch.bool)
    return blocked


def by_plain_hooks(lens, inputs, blocked, layers, heads=None):
    """Logits with minus infinity written into the scores that the model makes."""
    where = blocked[:, None]
    if heads is not None:
        chosen = torch.zeros(lens.model.cfg.n_heads, dtype=torch.bool)
        chosen[heads] = True
        where = where & chosen[:, None, None]

    def cut(scores, hook):
        return scores.masked_fill(where, -torch.inf)

    names = [f"blocks.{layer}.attn.hook_attn_scores" for layer in layers]
    with torch.no_grad():
        return lens.run_with_hooks(inputs, fwd_hooks=[(name, cut) for name in names])


def every_position(lens, inputs):
    """Logits at the speed of SDPA."""
    return lens.logits_at(inputs, torch.arange(inputs.shape[1]).expand(len(inputs), -1))


@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize(
    ("keys", "queries", "layers", "heads"),
    [
        ([7, 8, 9], slice(12, None), [1], None),
        ([20, 21], [23], [0, 2], None),
        (range(6, 20), slice(8, None), [0, 1], [3]),
    ],
)
def test_it_is_minus_infinity_in_the_scores(engine, name, keys, queries, layers, heads):
    lens = text_lens(engine, name)
    inputs = encoded(lens)
    to = torch.arange(LENGTH)[queries] if isinstance(queries, slice) else torch.tensor(queries)
    cut = Knockout(from_=list(keys), to=to, layers=layers, heads=heads)
    expected = by_plain_hooks(lens, inputs, edges(inputs, list(keys), queries), layers, heads)
    real = inputs.attention_mask
    with torch.no_grad(), lens.intervene(cut):
        assert largest_difference(lens.model(inputs), expected, real) < 1e-4
        assert largest_difference(every_position(lens, inputs), expected, real) < 1e-4
        assert largest_difference(every_position(lens, inputs), lens.model(inputs), real) < 1e-4
    with torch.no_grad():
        assert largest_difference(lens.model(inputs), expected, real) > 0.1


@pytest.mark.parametrize("padded", [True, False])
def test_in_all_layers_it_is_hugging_faces_mask(engine, padded):
    lens = text_lens(engine)
    inputs = encoded(lens, padded=padded)
    blocked = edges(inputs, [6, 7, 8], slice(10, None))
    visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() & inputs.attention_mask.bool()[:, None] & ~blocked
    additive = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[:, None]
    positions = (inputs.attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        reference = lens.hf_model(
            input_ids=inputs.tokens, attention_mask=additive, position_ids=positions, use_cache=False
        ).logits
    with torch.no_grad(), lens.intervene(Knockout(from_=[6, 7, 8], to=list(range(10, LENGTH)))):
        assert relative_difference(lens.model(inputs)[:, 5:], reference[:, 5:]) < 1e-5
        assert relative_difference(every_position(lens, inputs)[:, 5:], reference[:, 5:]) < 1e-5


def test_an_answer_is_that_of_every_pass_without_the_keys(engine):
    """Step by step, without a key-value cache, by minus infinity in the scores: what was last stays cut."""
    lens = text_lens(engine)
    prompt = lens.encode({"input_ids": text_tokens(LENGTH, 1), "attention_mask": torch.ones(1, LENGTH)})
    tokens = prompt.tokens
    for _ in range(6):
        longer = lens.encode({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
        logits = by_plain_hooks(lens, longer, edges(longer, range(2, 20), slice(LENGTH - 1, None)), [0, 1])
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    with lens.intervene(Knockout(from_=list(range(2, 20)), to="last", layers=[0, 1])):
        answer = lens.generate(prompt, max_new_tokens=6)
    assert torch.equal(answer.tokens, tokens[:, LENGTH:])
    assert not torch.equal(answer.tokens, lens.generate(prompt, max_new_tokens=6).tokens)


def test_an_answer_of_a_batch_with_a_hook_on_patterns_is_the_same(engine):
    """With whole patterns and at the speed of SDPA; heads that share keys, keys in the window."""
    lens = text_lens(engine, "qwen2-window-some-layers")
    prompt = encoded(lens)
    patterns = []
    with lens.intervene(Knockout(from_=[20, 21], to="all", heads=[1, 2]), Knockout(from_="generated", layers=0)):
        fast = lens.generate(prompt, max_new_tokens=6)
        slow = lens.generate(
            prompt, max_new_tokens=6, fwd_hooks=[(("pattern", 0), lambda pattern, hook: patterns.append(pattern))]
        )
    assert torch.equal(fast.tokens, slow.tokens)
    assert not torch.equal(fast.tokens, lens.generate(prompt, max_new_tokens=6).tokens)
    last = patterns[-1]
    assert last.shape[-2:] == (1, LENGTH + 5)
    assert not bool(last[:, 1:3, :, 20:22].any()) and not bool(last[..., LENGTH:-1].any())
    torch.testing.assert_close(last.sum(-1), torch.ones_like(last.sum(-1)))


def test_no_layers_changes_nothing(tiny):
    inputs = tiny.prepare(QUESTION, images=[scene(48, 48)])
    before, light = tiny.model(inputs), every_position(tiny, inputs)
    with tiny.intervene(Knockout(from_="image", to="last", layers=())):
        assert torch.equal(tiny.model(inputs), before) and torch.equal(every_position(tiny, inputs), light)


def test_without_the_picture_two_pictures_are_one(tiny):
    first, second = (tiny.prepare(QUESTION, images=[scene(48, 48, seed)]) for seed in (3, 5))
    assert largest_difference(tiny.model(first)[:, -1], tiny.model(second)[:, -1]) > 10
    with tiny.intervene(Knockout(from_="image", to="text")):
        assert torch.equal(tiny.model(first)[:, -1], tiny.model(second)[:, -1])
        assert torch.equal(every_position(tiny, first)[:, -1], every_position(tiny, second)[:, -1])
        assert tiny.generate(first).text == tiny.generate(second).text


def test_the_tiny_model_looks_at_the_picture_in_one_layer(tiny):
    inputs = tiny.prepare(QUESTION, images=[draw_scene(random.Random(3)).image])
    color = tiny.generate(inputs).tokens[0, 0]
    last = torch.tensor([[inputs.shape[1] - 1]])
    probability = []
    for layer in range(tiny.model.cfg.n_layers):
        with tiny.intervene(Knockout(from_="image", to="last", layers=layer)):
            probability.append(float(tiny.logits_at(inputs, last).softmax(-1)[0, 0, color]))
    assert probability[1] < 0.01 and min(probability[:1] + probability[2:]) > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(engine, dtype):
    lens = lensplug.wrap(text_model("qwen2").to(dtype), engine=engine)
    inputs = encoded(lens)
    expected = by_plain_hooks(lens, inputs, edges(inputs, [7, 8], slice(10, None)), [0, 2])
    with torch.no_grad(), lens.intervene(Knockout(from_=[7, 8], to=list(range(10, LENGTH)), layers=[0, 2])):
        assert largest_difference(lens.model(inputs), expected, inputs.attention_mask) == 0
        fast = every_position(lens, inputs)
    rounding = largest_difference(every_position(lens, inputs), lens.model(inputs), inputs.attention_mask)
    assert largest_difference(fast, expected, inputs.attention_mask) < 2 * rounding
    assert largest_difference(fast, lens.model(inputs), inputs.attention_mask) > 10 * rounding


def test_gradients_are_those_of_the_cut_model(engine):
    """Kept patterns, and what a backward pass in blocks of rows makes of them."""
    lens = text_lens(engine)
    inputs = encoded(lens)
    cut = Knockout(from_=[7, 8, 9], to=list(range(12, LENGTH)), layers=[1], heads=[0, 3])
    with lens.intervene(cut):
        logits, cache, grads = lens.run_with_gradients(inputs, target=5)
        light, kept, _ = lens.run_with_gradients(inputs, target=5, keep="cam")
    assert largest_difference(logits[:, -1], light[:, -1]) < 1e-4
    for layer in range(3):
        product = (cache["pattern", layer] * grads["pattern", layer]).clamp(min=0).mean(dim=1)
        assert relative_difference(kept[f"blocks.{layer}.attn.cam_positive"], product) < 1e-4
    assert not bool(cache["pattern", 1][:, [0, 3], 12:, 7:10].any())
    assert bool(cache["pattern", 1][:, [1, 2], 12:, 7:10].all())


def test_what_is_reduced_while_the_model_runs_is_of_the_cut_patterns(engine):
    lens = text_lens(engine)
    inputs = encoded(lens)
    with lens.intervene(Knockout(from_=[7, 8, 9], to=list(range(12, LENGTH)), layers=[1], heads=[0, 3])):
        _, whole = lens.run_with_cache(inputs)
        _, kept = lens.run_with_cache(inputs, needs=[], keep=["head_mean", "modality_mass"])
    for layer in range(3):
        mean = kept[f"blocks.{layer}.attn.head_mean"]
        torch.testing.assert_close(mean, whole["pattern", layer].float().mean(dim=1), atol=1e-5, rtol=1e-4)
    assert kept.interventions == whole.interventions


def test_a_query_that_sees_nothing_writes_nothing(engine):
    lens = text_lens(engine)
    inputs = encoded(lens, padded=False)
    with lens.intervene(Knockout(from_="text", to=[4], layers=1, own=True)):
        _, cache = lens.run_with_cache(inputs)
        _, light = lens.run_with_cache(inputs, query_positions=[4])
    for each in (cache, light):
        assert not bool(each["z", 1][:, 4].any()) and bool(each["z", 1][:, 5].any())
    assert not bool(cache["pattern", 1][:, :, 4].any()) and not bool(light["pattern", 1].any())


def test_knockouts_add_up_also_in_an_inner_scope(engine):
    lens = text_lens(engine)
    inputs = encoded(lens)
    first, second = (Knockout(from_=[key], to=list(range(12, LENGTH)), layers=[0, 1]) for key in (7, 9))
    expected = by_plain_hooks(lens, inputs, edges(inputs, [7, 9], slice(12, None)), [0, 1])
    with torch.no_grad(), lens.intervene(first), lens.intervene(second):
        nested = lens.model(inputs)
    with torch.no_grad(), lens.intervene(first, second):
        together = lens.model(inputs)
    assert torch.equal(nested, together) and largest_difference(nested, expected, inputs.attention_mask) < 1e-4


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Knockout(from_="audio"), "means no position of example 0"),
        (Knockout(from_=[20], to=[6]), "no position at to=.* comes behind one at from_="),
        (Knockout(from_="sound"), "expected one of 'text', 'image'"),
        (Knockout(from_=[7], layers=[3]), "the model has layers 0 to 2"),
        (Knockout(from_=[7], heads=[4]), "the model has heads 0 to 3"),
        (Knockout(from_=[7], heads=[(0, 1)], layers=[0]), "leave layers out"),
        (Knockout(from_=[30]), "out of range"),
        (Knockout(from_="generated"), "means no position"),
        (Knockout(from_=torch.ones(2, LENGTH)), "for a mask give from_.bool()"),
        (Knockout(from_=torch.ones(2, LENGTH, dtype=torch.long)), "for a mask give from_.bool()"),
        (Knockout(from_=torch.ones(1, 7, dtype=torch.bool)), "the run has the shape"),
    ],
)
def test_what_changes_nothing_is_refused(engine, edit, message):
    lens = text_lens(engine)
    inputs = encoded(lens)
    with lens.intervene(edit), pytest.raises(LensplugError, match=message):
        lens.model(inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_cores_with_masks_and_positions_of_their_own(family):
    """An image that sees itself whole (Gemma 3), windows, positions of three parts."""
    lens = wrapped(family)
    inputs = lens.encode(given_of(family))
    last = inputs.shape[1] - 1
    image = inputs.modality.mask("image")
    blocked = torch.zeros(len(inputs), last + 1, last + 1, dtype=torch.bool)
    blocked[:, last] = image
    expected = by_plain_hooks(lens, inputs, blocked, [0, 1, 2])
    with torch.no_grad(), lens.intervene(Knockout(from_="image", to="last")):
        assert largest_difference(lens.model(inputs)[:, last], expected[:, last]) < 1e-4
        assert largest_difference(every_position(lens, inputs)[:, last], expected[:, last]) < 1e-4
        answer = lens.generate(inputs, max_new_tokens=3)
    assert torch.equal(answer.tokens[:, 0], expected[:, last].argmax(-1))
    assert largest_difference(lens.model(inputs)[:, last], expected[:, last]) > 0.05
