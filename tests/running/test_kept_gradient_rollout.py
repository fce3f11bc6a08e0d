"""Rows of gradient rollout that the backward pass multiplied up are those of whole patterns and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.models import QUESTION, scene
from transformer_lens.utilities import get_act_name

from lensplug import LensplugError, analysis
from lensplug.reductions import GradientRolloutRows
from lensplug.reductions import names as hook_names
from lensplug.reductions.cam import Contributions

TOKEN = 7
pytestmark = pytest.mark.usefixtures("trainable_as_before")


def by_hand(cache, grads, example, row, contributions="positive", exclude_first=True):
    """e (I + cam_last) ... (I + cam_first) - e in doubles, from patterns and their gradients."""
    real = cache.attention_mask[example].bool().numpy()
    keys = real.copy()
    keys[np.flatnonzero(real)[0]] = not exclude_first
    vector = np.eye(len(real))[row]
    for layer in reversed(range(cache.model.cfg.n_layers)):
        name = get_act_name("pattern", layer)
        product = (cache[name][example].double() * grads[name][example].double()).numpy()
        if contributions != "signed":
            product = np.maximum(product if contributions == "positive" else -product, 0)
        vector = vector + vector @ (product.mean(0) * np.outer(real, keys))
    vector[row] -= 1
    return vector


@pytest.mark.parametrize("block_bytes", [1, 100_000, 2**26])
def test_the_targets_row_is_that_of_the_whole_product(lens, batch, block_bytes, monkeypatch):
    """Left padding, a batch, query heads that share keys."""
    assert lens.model.cfg.n_key_value_heads < lens.model.cfg.n_heads and not bool(batch.attention_mask[:, 0].all())
    monkeypatch.setattr("lensplug.patches.pattern_blocks.BLOCK_BYTES", block_bytes)
    ids = torch.tensor([TOKEN, 11, 42])
    _, cache, grads = lens.run_with_gradients(batch, target=ids)
    _, cams, none = lens.run_with_gradients(batch, target=ids, keep="cam")
    _, kept, none = lens.run_with_gradients(batch, target=ids, keep="gradient_rollout")
    assert max(value.ndim for value in kept.cache_dict.values()) == 3 and not none.cache_dict
    assert sum(value.numel() for value in kept.cache_dict.values()) == batch.tokens.numel() + len(batch)
    found, expected = (analysis.gradient_rollout(one, none, rows=-1) for one in (kept, cams))
    largest = float(expected.relevance.max())
    torch.testing.assert_close(found.relevance, expected.relevance, atol=1e-6 * largest, rtol=1e-6)
    torch.testing.assert_close(found.values, expected.values, atol=1e-6 * largest, rtol=1e-6)
    assert found.provenance.convention == expected.provenance.convention and torch.equal(found.rows, expected.rows)
    for example in range(3):
        hand = by_hand(cache, grads, example, int(found.rows[example, 0]))
        np.testing.assert_allclose(found.relevance[example, 0].numpy(), hand, atol=1e-4 * hand.max())
        assert hand.max() > 1e-3


@pytest.mark.parametrize("contributions", ["positive", "negative", "signed"])
@pytest.mark.parametrize("exclude_first", [True, False])
def test_chosen_rows_and_options(lens, batch, contributions, exclude_first):
    opposite: Contributions = "positive" if contributions == "negative" else "negative"
    keep = [GradientRolloutRows([-1, -4, -2], contributions, exclude_first), GradientRolloutRows(-3, opposite)]
    _, kept, none = lens.run_with_gradients(batch, target=TOKEN, keep=keep)
    _, cache, grads = lens.run_with_gradients(batch, target=TOKEN)
    options = {"contributions": contributions, "exclude_first": exclude_first}
    for rows in ([-1, -4, -2], [-4, -1], -2):
        found, expected = (
            analysis.gradient_rollout(*one, rows=rows, **options) for one in ((kept, none), (cache, grads))
        )
        assert torch.equal(found.rows, expected.rows)
        atol = 1e-4 * float(expected.relevance.abs().max())
        torch.testing.assert_close(found.relevance, expected.relevance, atol=atol, rtol=0)
        assert found.provenance.convention == expected.provenance.convention
    if contributions == "positive" and exclude_first:
        first = analysis.gradient_rollout(kept, none, rows=-1, sinks="first")
        assert not bool(first.relevance[batch.attention_mask.cumsum(1)[:, None] == 1].any())
    one = kept.apply_slice_to_batch_dim(1)
    alone = analysis.gradient_rollout(one, none, rows=-4, **options).relevance
    assert torch.equal(alone, analysis.gradient_rollout(kept, none, rows=-4, **options).relevance[1:2])


def test_an_answers_rows_a_function_with_rows_and_inference_mode(lens):
    inputs = lens.prepare(QUESTION, images=[scene(48, 48)], answer="Red green")
    first = int(inputs.modality.mask("generated")[0].nonzero()[0, 0])
    rows = list(range(first - 1, inputs.tokens.shape[1] - 1))
    assert len(rows) > 1
    with torch.inference_mode():
        _, kept, none = lens.run_with_gradients(inputs, target=inputs, keep="gradient_rollout")
    _, cams, _ = lens.run_with_gradients(inputs, target=inputs, keep="cam")
    found, expected = (analysis.gradient_rollout(one, none, rows=rows).relevance for one in (kept, cams))
    torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.max()), rtol=1e-6)

    def target(logits):
        return logits[0, -1, TOKEN]

    keep = GradientRolloutRows(-1)
    _, kept, none = lens.run_with_gradients(inputs, target=target, keep=keep)
    found = analysis.gradient_rollout(kept, none, rows=-1).relevance
    _, cams, _ = lens.run_with_gradients(inputs, target=target, keep="cam")
    expected = analysis.gradient_rollout(cams, none, rows=-1).relevance
    torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.max()), rtol=1e-6)
    with pytest.raises(LensplugError, match=r"a function does not say which: keep=.*GradientRolloutRows\(rows=\[-1\]"):
        lens.run_with_gradients(inputs, target=target, keep="gradient_rollout")


@pytest.mark.parametrize(
    ("name", "layers"), [("blocks.1.hook_resid_post", r"\[0, 1, "), ("blocks.1.hook_attn_out", r"\[1\]")]
)
def test_layers_that_no_gradient_comes_through_are_refused(lens, inputs, name, layers):
    """A backward pass does not come by what leads to no embedding: nothing would be counted there, nor be missed."""
    with lens.hooks([(name, lambda value, hook: value.detach().requires_grad_())]):
        with pytest.raises(LensplugError, match=f"through the attention of layers {layers}.*run without keep"):
            lens.run_with_gradients(inputs, target=TOKEN, keep="gradient_rollout")
        _, cache, grads = lens.run_with_gradients(inputs, target=TOKEN)
    assert float(analysis.gradient_rollout(cache, grads, rows=-1).relevance.max()) > 1e-3


def test_what_was_not_kept_is_refused(lens, inputs):
    _, kept, none = lens.run_with_gradients(inputs, target=TOKEN, keep="gradient_rollout")
    last = inputs.tokens.shape[1] - 1
    for options, match in (
        ({"rows": 5}, rf"rows has position 5 of example 0, and the cache holds the rows of the list \[{last}\]"),
        ({}, "rows has position 0 of example 0"),
        ({"rows": -1, "normalize": True}, "normalize needs the sums of every row of R.*keep=\"cam\""),
        ({"rows": -1, "contributions": "negative"}, "holds 'gradient_rollout_positive_without_first', made with other"),
        ({"rows": -1, "exclude_first": False}, r"GradientRolloutRows\(contributions='positive', exclude_first=False"),
        ({"rows": -1, "sinks": [0, 3]}, "the rows were multiplied with those sinks in them"),
        ({"rows": -1, "attention_mask": inputs.attention_mask.clone().index_fill_(1, torch.tensor([0]), 0)},
         "attention_mask is another"),
    ):  # fmt: skip
        with pytest.raises(LensplugError, match=match):
            analysis.gradient_rollout(kept, none, **options)
    both = ["gradient_rollout", GradientRolloutRows(5)]
    with pytest.raises(LensplugError, match="keep has GradientRolloutRows twice with contributions='positive'"):
        lens.run_with_gradients(inputs, target=TOKEN, keep=both)
    with pytest.raises(LensplugError, match="out of range or padding"):
        lens.run_with_gradients(inputs, target=TOKEN, keep=GradientRolloutRows(last + 1))
    kept["blocks.0.attn.hook_pattern"] = torch.zeros(1)
    assert not [name for name in kept if name.startswith(hook_names.GRADIENT_ROLLOUT)]
