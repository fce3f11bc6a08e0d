"""FromLayer: runs that begin at a layer are those of the whole model, and the blocks below are not run."""

from __future__ import annotations

import pytest
import torch
from support.beside import FAMILIES, wrapped
from support.built import ENGINES, built
from support.models import TEXT_CORES, snapshot, text_model, text_tokens

from lensplug import LensplugError
from lensplug.patches.both.from_layer import FromLayer

TOKENS = text_tokens(24, 2)
MASKS = {"none": None, "left": slice(0, 5), "right": slice(19, 24)}


def masked(padding):
    mask = torch.ones_like(TOKENS)
    if padding is not None:
        mask[1, padding] = 0
    return mask


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "mistral-window"])
def test_a_run_from_a_layer_is_the_rest_of_the_whole_run(engine, name, padding):
    assert name in TEXT_CORES
    model, mask = built(engine, text_model(name)), masked(MASKS[padding])
    with torch.no_grad():
        expected, cache = model.run_with_cache(TOKENS, attention_mask=mask)
        before, ran = snapshot(model), []
        for layer in range(model.cfg.n_layers):
            hooks = [(f"blocks.{at}.hook_resid_post", lambda x, hook: ran.append(hook.name)) for at in range(3)]
            with FromLayer(model, layer, cache["resid_pre", layer]):
                found = model.run_with_hooks(TOKENS, fwd_hooks=hooks, attention_mask=mask)
            torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-6, rtol=0)
            assert ran == [f"blocks.{at}.hook_resid_post" for at in range(layer, 3)], "no block below"
            ran.clear()
    assert snapshot(model) == before


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_put_in_is_what_counts(engine):
    model = built(engine, text_model("llama"))
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
        other = 2 * cache["resid_pre", 2]
        kept = other.clone()

        def zero(stream, hook):
            stream[:, 0] = 0
            return stream

        expected = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.2.hook_resid_pre", lambda x, hook: 2 * x)])
        with FromLayer(model, 2, other):
            torch.testing.assert_close(model(TOKENS), expected, atol=1e-6, rtol=0)
            assert not torch.equal(
                model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.2.hook_resid_pre", zero)]), expected
            )
            with pytest.raises(LensplugError, match=r"put in is \[2, 24, 32\], the model runs on \[1, 24, 32\]"):
                model(TOKENS[:1])
    assert torch.equal(other, kept), "a hook that writes does not write into it"
    with pytest.raises(LensplugError, match="layer is 3, expected 0 to 2"):
        FromLayer(model, 3, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_cores_that_are_given_more_than_embeddings(name):
    lens, prompts = wrapped(name), FAMILIES[name][1]
    inputs = lens.encode(prompts(12, 8))
    attended = inputs.attention_mask.bool()
    logits, cache = lens.run_with_cache(inputs)
    for layer in range(lens.model.cfg.n_layers):
        with torch.no_grad(), FromLayer(lens.model, layer, cache["resid_pre", layer]):
            torch.testing.assert_close(lens.model(inputs)[attended], logits[attended], atol=1e-5, rtol=0)
