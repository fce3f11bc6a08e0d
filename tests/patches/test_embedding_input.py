"""EmbeddingInput and BridgeEmbeddingInput: merged embeddings wherever tokens go, on a model that one already has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.built import ENGINES, HOOKED, ONLY_HOOKED, built, embedding_input
from support.models import largest_difference, reference_logits, snapshot, text_model, text_tokens
from torch.nn.functional import cross_entropy

from lensplug import LensplugError
from lensplug.tiny.image_model import build_tokenizer

GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False}


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture
def patch(engine):
    """The class of the patch."""
    return embedding_input(engine)


@pytest.fixture
def hf():
    return text_model("qwen2")


@pytest.fixture
def plain(engine, hf):
    return built(engine, hf)


@pytest.fixture
def patched(plain, patch):
    with patch(plain):
        yield plain


def merged(batch=1, length=24, seed=0):
    """Embeddings that are those of no tokens, as an image's are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, 32, generator=generator)


def padded(side):
    """Two examples, the second four positions shorter."""
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[1, slice(0, 4) if side == "left" else slice(20, 24)] = 0
    return merged(2), mask


def test_logits_equal_those_of_hugging_face(hf, patched):
    embeds = merged()
    assert largest_difference(patched(embeds), reference_logits(hf, {"inputs_embeds": embeds})) < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_at_either_side_is_honoured(hf, patched, side):
    embeds, mask = padded(side)
    reference = reference_logits(hf, {"inputs_embeds": embeds, "attention_mask": mask})
    for given in (patched(embeds, attention_mask=mask), patched(bundle(embeds, mask))):
        assert largest_difference(given, reference, mask) < 1e-4
    unmasked = patched(embeds)
    assert largest_difference(unmasked[1:], reference[1:], mask[1:]) > 1e-2 or side == "right"
    _, cache = patched.run_with_cache(embeds, attention_mask=mask)
    real, pattern = mask[1].bool(), cache["pattern", 0][1]
    assert float(pattern[:, real][:, :, ~real].abs().max()) == 0 and float(pattern.triu(1).abs().max()) == 0
    torch.testing.assert_close(pattern.sum(-1)[:, real], torch.ones(4, int(real.sum())))


@pytest.mark.parametrize("engine", ["bridge"], indirect=True)
def test_on_a_bridge_padding_sees_nothing(patched):
    embeds, mask = padded("left")
    _, cache = patched.run_with_cache(embeds, attention_mask=mask)
    assert float(cache["pattern", 1][1][:, ~mask[1].bool()].abs().max()) == 0
    assert bool(cache["attn_scores", 1][1][:, ~mask[1].bool()].isneginf().all())


def bundle(embeds, mask, tokens=None):
    """What a MultimodalInput is to the patch."""
    return SimpleNamespace(embeds=embeds, attention_mask=mask, tokens=tokens)


def test_hook_embed_fires_with_the_merged_embeddings_and_may_edit_them(patched):
    embeds = merged()
    _, cache = patched.run_with_cache(embeds)
    assert torch.equal(cache["hook_embed"], embeds) and cache.has_embed

    def silence(value, hook):
        return value * (torch.arange(24) != 7)[None, :, None]

    edited = patched.run_with_hooks(embeds, fwd_hooks=[("hook_embed", silence)])
    torch.testing.assert_close(edited, patched(silence(embeds, None)))


def test_a_hook_that_writes_into_what_it_gets_leaves_the_inputs_whole(patched):
    embeds, mask = padded("left")
    before = embeds.clone()

    def erase(embed, hook):
        embed[:, 6:9] = 0
        return embed

    untouched = patched(bundle(embeds, mask))
    changed = patched.run_with_hooks(bundle(embeds, mask), fwd_hooks=[("hook_embed", erase)])
    assert torch.equal(embeds, before)
    assert largest_difference(changed, untouched) > 0.1
    assert torch.equal(patched(bundle(embeds, mask)), untouched)
    with patched.hooks(fwd_hooks=[("hook_embed", erase)]):
        patched.generate(bundle(embeds, mask), max_new_tokens=2, **GREEDY)
    assert torch.equal(embeds, before)


def test_decompositions_sum_to_the_residual(patched):
    _, cache = patched.run_with_cache(merged())
    last = cache["resid_post", -1]
    for parts in (
        cache.decompose_resid(),
        cache.get_full_resid_decomposition(expand_neurons=False),
        cache.get_full_resid_decomposition(expand_neurons=True),
        cache.stack_head_results(incl_remainder=True),
    ):
        torch.testing.assert_close(parts.sum(0), last, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cache.accumulated_resid()[-1], last)


def test_loss_is_the_cross_entropy_of_the_given_tokens(hf, patched):
    embeds, mask = padded("left")
    tokens = text_tokens(24, batch=2)
    logits = reference_logits(hf, {"inputs_embeds": embeds, "attention_mask": mask})
    counted = (mask[:, :-1] * mask[:, 1:]).bool()
    expected = cross_entropy(logits[:, :-1][counted], tokens[:, 1:][counted])
    loss = patched(embeds, return_type="loss", tokens=tokens, attention_mask=mask)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    both = patched(bundle(embeds, mask, tokens), return_type="both")
    torch.testing.assert_close(both[1], expected, atol=1e-4, rtol=1e-5)
    assert patched(bundle(embeds, mask, tokens), return_type="loss", loss_per_token=True).shape == (2, 23)
    with pytest.raises(LensplugError, match="the loss needs the tokens"):
        patched(embeds, return_type="loss")


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
def test_generation_equals_hugging_face_and_fires_hook_embed(hf, patched, use_past_kv_cache):
    embeds, mask = padded("left")
    expected = hf.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=6, do_sample=False)
    tokens, seen = text_tokens(24, batch=2), []
    with patched.hooks(fwd_hooks=[("hook_embed", lambda value, hook: seen.append(value.shape[1]))]):
        output = patched.generate(
            bundle(embeds, mask, tokens), max_new_tokens=6, use_past_kv_cache=use_past_kv_cache, **GREEDY
        )
    assert torch.equal(output, torch.cat([tokens, expected], dim=1))
    assert seen == ([24, 1, 1, 1, 1, 1] if use_past_kv_cache else [24, 25, 26, 27, 28, 29])
    with pytest.raises(LensplugError, match="pad at the left"):
        patched.generate(bundle(*padded("right")), max_new_tokens=4, **GREEDY)
    with pytest.raises(LensplugError, match="the answer reaches 513 positions, but the model has a context of 512"):
        patched.generate(torch.randn(1, 510, 32), max_new_tokens=6, **GREEDY)


def test_gradients_reach_the_embeddings_as_in_hugging_face(hf, patched):
    (ours, mask), (theirs, _) = padded("left"), padded("left")
    ours.requires_grad_(), theirs.requires_grad_()
    patched(ours, attention_mask=mask)[:, -1, 5].sum().backward()
    hf(inputs_embeds=theirs, attention_mask=mask, use_cache=False).logits[:, -1, 5].sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3)
    assert bool(ours.grad.any())


def test_tokens_go_the_old_way(hf, plain, patch, engine):
    tokens, mask = text_tokens(24, batch=2), padded("left")[1]

    def everything():
        return [
            plain(tokens),
            plain(tokens, attention_mask=mask),
            plain(tokens, return_type="loss"),
            plain.generate(tokens, max_new_tokens=3, **GREEDY),
        ]

    before = everything()
    with patch(plain):
        assert all(map(torch.equal, everything(), before))
        if engine == "hooked_transformer" or not HOOKED:  # a bridge of 3.9 does not know start_at_layer
            resid = plain(tokens, stop_at_layer=1)
            torch.testing.assert_close(plain(resid, start_at_layer=1), before[0])
    assert all(map(torch.equal, everything(), before))
    reference = reference_logits(hf, {"input_ids": tokens, "attention_mask": mask})
    assert largest_difference(before[1], reference, mask) < 1e-4


def test_before_is_after_also_when_a_hook_raises_and_when_nested(plain, patch):
    before = snapshot(plain)
    with pytest.raises(ZeroDivisionError, match="mine"), patch(plain):

        def fail(value, hook):
            raise ZeroDivisionError("mine")

        plain.run_with_hooks(merged(), fwd_hooks=[("blocks.1.hook_resid_mid", fail)])
    assert snapshot(plain) == before
    with patch(plain), patch(plain):
        once = plain(merged())
    assert snapshot(plain) == before
    with patch(plain):
        assert torch.equal(plain(merged()), once)


@pytest.mark.skipif(not HOOKED, reason=ONLY_HOOKED)
@pytest.mark.parametrize("engine", ["hooked_transformer"], indirect=True)
def test_without_it_a_hooked_transformer_takes_no_embeddings(plain):
    with pytest.raises((TypeError, IndexError, RuntimeError, ValueError)):
        plain(merged())


@pytest.mark.parametrize(
    ("embeds", "options", "message"),
    [
        (torch.zeros(1, 5, 31), {}, r"shape \[1, 5, 31\], expected \[batch, pos, 32\]"),
        (torch.zeros(5, 32), {}, r"shape \[5, 32\]"),
        (torch.zeros(1, 5, 32, dtype=torch.bfloat16), {}, "torch.bfloat16, the model is torch.float32"),
        (torch.zeros(1, 5, 32), {"attention_mask": torch.ones(1, 4)}, r"attention_mask has the shape \[1, 4\]"),
        (torch.zeros(1, 5, 32), {"tokens": torch.ones(2, 5)}, r"tokens has the shape \[2, 5\]"),
        (torch.zeros(1, 5, 32), {"attention_mask": torch.tensor([[1, 1, 0, 1, 1]])}, "hole in example 0"),
        (torch.zeros(1, 513, 32), {}, "513 positions, but the model has a context of 512"),
        (bundle(torch.zeros(1, 5, 32), None), {"start_at_layer": 1}, "start_at_layer takes a residual stream"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(patched, embeds, options, message):
    before = snapshot(patched)
    with pytest.raises(LensplugError, match=message):
        patched(embeds, **options)
    assert snapshot(patched) == before


@pytest.mark.skipif(not HOOKED, reason=ONLY_HOOKED)
@pytest.mark.parametrize("engine", ["hooked_transformer"], indirect=True)
@pytest.mark.parametrize("side", [None, "left"])
def test_a_prompt_in_two_pieces_through_the_key_value_cache(hf, patched, side):
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    embeds, mask = padded(side) if side else (merged(2), None)
    reference = reference_logits(hf, {"inputs_embeds": embeds, "attention_mask": mask})
    cache = TransformerLensKeyValueCache.init_cache(patched.cfg, "cpu", 2)
    first = patched(embeds[:, :9], past_kv_cache=cache, attention_mask=None if mask is None else mask[:, :9])
    rest = patched(embeds[:, 9:], past_kv_cache=cache)
    assert largest_difference(torch.cat([first, rest], dim=1), reference, mask) < 1e-4


@pytest.fixture
def speaking(engine):
    """A model with a tokenizer."""
    return built(engine, text_model("qwen2", vocab_size=512), tokenizer=build_tokenizer())


def test_generate_returns_what_is_asked_for(speaking, patch):
    embeds, mask = padded("left")
    tokens = text_tokens(24, batch=2)
    with patch(speaking):
        whole = speaking.generate(bundle(embeds, mask, tokens), max_new_tokens=4, **GREEDY)
        new = speaking.generate(embeds, attention_mask=mask, return_type="tokens", max_new_tokens=4, **GREEDY)
        text = speaking.generate(bundle(embeds, mask, tokens), return_type="str", max_new_tokens=4, **GREEDY)
    assert torch.equal(whole, torch.cat([tokens, new], dim=1))
    assert text == speaking.tokenizer.batch_decode(new)


def test_strings_and_token_ids_as_before_in_every_way(speaking, patch):
    words, tokens = ["What is the color?", "What is the shape? Answer single word."], text_tokens(24, batch=2)

    def everything():
        return [
            speaking(tokens, attention_mask=padded("left")[1]),
            speaking(tokens, return_type="loss"),
            speaking(words),
            speaking.run_with_cache(words[0])[1]["resid_post", -1],
            speaking.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: 0 * value)]),
            speaking.generate(tokens, max_new_tokens=4, **GREEDY),
            speaking.generate(words[0], return_type="tokens", max_new_tokens=4, **GREEDY),
        ]

    before = everything()
    with patch(speaking):
        during = everything()
    for old, new, after in zip(before, during, everything(), strict=True):
        assert torch.equal(old, new) and torch.equal(old, after)


def test_two_at_once_fire_hook_embed_once_and_come_off_in_any_order(plain, patch):
    before, fired, (embeds, mask) = snapshot(plain), [], padded("left")
    given = bundle(embeds, mask, text_tokens(24, batch=2))
    first = patch(plain).apply()
    once = plain(given), plain.generate(given, max_new_tokens=4, **GREEDY)
    second = patch(plain).apply()
    with plain.hooks(fwd_hooks=[("hook_embed", lambda value, hook: fired.append(value.shape[1]))]):
        twice = plain(given), plain.generate(given, max_new_tokens=4, **GREEDY)
    assert fired == [24, 24, 1, 1, 1] and all(map(torch.equal, once, twice))
    first.remove()
    assert torch.equal(plain(given), once[0]), "the second still counts on it"
    second.remove()
    assert snapshot(plain) == before


def test_a_hook_that_raises_in_a_step_of_generate_leaves_the_patch_alone(patched):
    before = snapshot(patched)

    def fail_on_the_second_step(value, hook):
        if value.shape[1] == 1:
            raise ZeroDivisionError("mine")

    with (
        pytest.raises(ZeroDivisionError, match="mine"),
        patched.hooks(fwd_hooks=[("hook_embed", fail_on_the_second_step)]),
    ):
        patched.generate(merged(), max_new_tokens=4, **GREEDY)
    assert snapshot(patched) == before
