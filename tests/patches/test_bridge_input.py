"""BridgeEmbeddingInput: merged embeddings wherever tokens go, on a TransformerBridge; padding and generation right."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from built import built
from lensplug.patches import BridgeCache, BridgeEmbeddingInput
from lensplug.patches.bridge_core import build_language_bridge
from models import largest_difference, reference_logits, snapshot, text_model, text_tokens
from torch.nn.functional import cross_entropy

from lensplug import LensplugError

GREEDY = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}


@pytest.fixture
def hf():
    return text_model("qwen2")


@pytest.fixture
def plain(hf):
    return built("bridge", hf)


@pytest.fixture
def patched(plain):
    BridgeEmbeddingInput(plain).apply()
    return plain


def merged(batch=1, seed=0):
    """Embeddings that belong to no tokens."""
    return torch.randn(batch, 24, 32, generator=torch.Generator().manual_seed(seed))


def padded(side):
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[1, slice(0, 7) if side == "left" else slice(17, 24)] = 0
    return merged(2), mask


def bundle(embeds, mask, tokens=None):
    """What a MultimodalInput is to the patch."""
    return SimpleNamespace(embeds=embeds, attention_mask=mask, tokens=tokens)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_at_either_side(hf, patched, side):
    embeds, mask = padded(side)
    reference = reference_logits(hf, {"inputs_embeds": embeds, "attention_mask": mask})
    for given in (patched(embeds, attention_mask=mask), patched(bundle(embeds, mask))):
        assert largest_difference(given, reference, mask) < 1e-4
    unmasked = patched(embeds)
    assert largest_difference(unmasked[1:], reference[1:], mask[1:]) > 1e-2 or side == "right"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_seen_by_nobody_and_sees_nothing_before_it(patched, side):
    embeds, mask = padded(side)
    _, cache = patched.run_with_cache(embeds, attention_mask=mask)
    real, pattern = mask[1].bool(), cache["pattern", 1][1]
    assert float(pattern[:, real][:, :, ~real].abs().max()) == 0
    assert float(pattern.triu(1).abs().max()) == 0
    sums = pattern.sum(-1)
    torch.testing.assert_close(sums[:, real], torch.ones_like(sums[:, real]))
    if side == "left":
        assert float(sums[:, ~real].abs().max()) == 0
        assert bool(cache["attn_scores", 1][1][:, ~real].isneginf().all())


def test_gradients_of_a_padded_batch_are_hugging_faces(hf, patched):
    (ours, mask), (theirs, _) = padded("left"), padded("left")
    ours.requires_grad_(), theirs.requires_grad_()
    patched(ours, attention_mask=mask)[:, -1, 5].sum().backward()
    hf(inputs_embeds=theirs, attention_mask=mask, use_cache=False).logits[:, -1, 5].sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3)
    assert bool(ours.grad.any())


def test_hook_embed_fires_with_the_merged_embeddings_and_may_edit_them(patched):
    embeds = merged()
    before = embeds.clone()
    _, cache = patched.run_with_cache(embeds)
    assert torch.equal(cache["hook_embed"], embeds) and cache.has_embed

    def silence(value, hook):
        value[:, 7] = 0
        return value

    edited = patched.run_with_hooks(embeds, fwd_hooks=[("hook_embed", silence)])
    assert torch.equal(embeds, before), "the inputs stay whole"
    torch.testing.assert_close(edited, patched(embeds * (torch.arange(24) != 7)[None, :, None]))
    assert largest_difference(edited, patched(embeds)) > 0.1


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
    each = patched(bundle(embeds, mask, tokens), return_type="loss", loss_per_token=True)
    assert each.shape == (2, 23)
    with pytest.raises(LensplugError, match="the loss needs the tokens"):
        patched(embeds, return_type="loss")


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
def test_generation_equals_hugging_face_and_fires_hook_embed_once_a_step(hf, patched, use_past_kv_cache):
    embeds, mask = padded("left")
    expected = hf.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=6, do_sample=False)
    tokens, seen = text_tokens(24, batch=2), []
    with patched.hooks(fwd_hooks=[("hook_embed", lambda value, hook: seen.append(value.shape[1]))]):
        output = patched.generate(bundle(embeds, mask, tokens), use_past_kv_cache=use_past_kv_cache, **GREEDY)
    assert torch.equal(output, torch.cat([tokens, expected], dim=1))
    assert seen == ([24, 1, 1, 1, 1, 1] if use_past_kv_cache else [24, 25, 26, 27, 28, 29])
    assert torch.equal(patched.generate(embeds, attention_mask=mask, **GREEDY), expected)
    with pytest.raises(LensplugError, match="pad at the left"):
        patched.generate(bundle(*padded("right")), **GREEDY)
    with pytest.raises(LensplugError, match="the answer reaches 513 positions, but the model has a context of 512"):
        patched.generate(torch.randn(1, 510, 32), **GREEDY)


def test_without_the_patch_of_its_cache_a_bridge_forgets_the_prompt(hf):
    """The trap: other words, no error. When this fails, TransformerLens knows the new name and BridgeCache may go."""
    bridge, tokens = build_language_bridge(hf.model, hf.lm_head, hf.config), text_tokens(24)
    expected = hf.generate(tokens, max_new_tokens=6, do_sample=False)
    assert not torch.equal(bridge.generate(tokens, **GREEDY), expected)
    with BridgeCache(bridge):
        assert torch.equal(bridge.generate(tokens, **GREEDY), expected)


def test_tokens_go_the_old_way(hf, plain):
    tokens, mask = text_tokens(24, batch=2), padded("left")[1]
    before = plain(tokens, attention_mask=mask), plain.generate(tokens, attention_mask=mask, **GREEDY)
    loss = plain(tokens, return_type="loss")
    with BridgeEmbeddingInput(plain):
        assert torch.equal(plain(tokens, attention_mask=mask), before[0])
        assert torch.equal(plain.generate(tokens, attention_mask=mask, **GREEDY), before[1])
        assert torch.equal(plain(tokens, return_type="loss"), loss)
    reference = reference_logits(hf, {"input_ids": tokens, "attention_mask": mask})
    assert largest_difference(before[0], reference, mask) < 1e-4


def test_before_is_after_also_when_a_hook_raises_and_when_nested(plain):
    before, fired = snapshot(plain), []

    def fail(value, hook):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"), BridgeEmbeddingInput(plain):
        plain.run_with_hooks(merged(), fwd_hooks=[("blocks.1.hook_resid_mid", fail)])
    assert snapshot(plain) == before
    hooks = [("hook_embed", lambda value, hook: fired.append(value.shape[1]))]
    with BridgeEmbeddingInput(plain), BridgeEmbeddingInput(plain), plain.hooks(fwd_hooks=hooks):
        once = plain(merged())
        plain.generate(bundle(*padded("left")), **GREEDY)
    assert fired == [24, 24, 1, 1, 1, 1, 1]
    assert snapshot(plain) == before
    with BridgeEmbeddingInput(plain):
        assert torch.equal(plain(merged()), once)


@pytest.mark.parametrize(
    ("embeds", "options", "message"),
    [
        (torch.zeros(1, 5, 31), {}, r"shape \[1, 5, 31\], expected \[batch, pos, 32\]"),
        (torch.zeros(5, 32), {}, r"shape \[5, 32\]"),
        (torch.zeros(1, 5, 32, dtype=torch.bfloat16), {}, "torch.bfloat16, the model is torch.float32"),
        (torch.zeros(1, 5, 32), {"attention_mask": torch.ones(1, 4)}, r"attention_mask has the shape \[1, 4\]"),
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
