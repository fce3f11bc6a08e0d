"""Gradients kept block by block are those of whole patterns."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.models import relative_difference
from transformer_lens.utilities import get_act_name

from lensplug import LensplugError, analysis

TOKEN = 7
pattern = partial(get_act_name, "pattern")
pytestmark = pytest.mark.usefixtures("trainable_as_before")


@pytest.mark.parametrize("block_bytes", [1, 100_000, 2**26])
@pytest.mark.parametrize("contributions", ["positive", "negative", "signed"])
def test_what_is_kept_block_by_block_gives_the_same_rollout(lens, batch, contributions, block_bytes, monkeypatch):
    monkeypatch.setattr("lensplug.patches.pattern_blocks.BLOCK_BYTES", block_bytes)
    ids = torch.tensor([TOKEN, 11, 42])
    logits, cache, grads = lens.run_with_gradients(batch, target=ids)
    keep = ["cam", "cam_negative"] if contributions == "signed" else "cam" if contributions == "positive" else None
    kept_logits, kept, none = lens.run_with_gradients(batch, target=ids, keep=keep or "cam_negative")
    assert kept_logits.shape == (3, 1, lens.model.cfg.d_vocab) and not none.cache_dict
    torch.testing.assert_close(kept_logits[:, 0], logits[:, -1], atol=1e-3, rtol=1e-4)  # left padded
    assert all(name.rpartition("_")[0].endswith("cam") for name in kept)
    for options in ({}, {"rows": -1}, {"normalize": True}):
        if contributions == "signed" and "normalize" in options:
            continue
        found, expected = (
            analysis.gradient_rollout(*one, contributions=contributions, **options)
            for one in ((kept, none), (cache, grads))
        )
        assert relative_difference(found.relevance, expected.relevance) < 1e-4
        assert found.provenance.convention == expected.provenance.convention
    other = analysis.gradient_rollout(cache, grads, contributions="negative" if keep else "positive")
    assert relative_difference(found.relevance, other.relevance) > 0.1 or len(found.rows[0]) != len(other.rows[0])


def test_kept_activations_and_a_function_go_with_what_is_kept(lens, inputs):
    name = "blocks.2.hook_resid_post"
    target = lambda logits: logits[0, -1, TOKEN] - logits[0, -2, TOKEN]  # noqa: E731
    logits, cache, grads = lens.run_with_gradients(inputs, target=target, names_filter=[name, pattern(0)])
    _, kept, kept_grads = lens.run_with_gradients(inputs, target=target, names_filter=name, keep="cam")
    assert relative_difference(kept[name], cache[name]) < 1e-4
    assert relative_difference(kept_grads[name], grads[name]) < 1e-4
    expected = (cache[pattern(0)] * grads[pattern(0)]).clamp(min=0).mean(dim=1)
    assert relative_difference(kept["blocks.0.attn.cam_positive"], expected) < 1e-4


def test_what_does_not_go_with_what_is_kept_is_refused(lens, inputs):
    with pytest.raises(LensplugError, match="with keep, patterns and scores are not kept"):
        lens.run_with_gradients(inputs, target=TOKEN, names_filter=pattern(0), keep="cam")
    with pytest.raises(LensplugError, match="keep is 'rollout', expected 'cam', 'cam_negative'"):
        lens.run_with_gradients(inputs, target=TOKEN, keep="rollout")
    _, kept, none = lens.run_with_gradients(inputs, target=TOKEN, keep="cam")
    with pytest.raises(LensplugError, match=r"reads what keep=\['cam', 'cam_negative'\] keeps"):
        analysis.gradient_rollout(kept, none, contributions="signed")
    with pytest.raises(LensplugError, match="contributions is 'all', expected 'positive', 'negative' or 'signed'"):
        analysis.gradient_rollout(kept, none, contributions="all")  # type: ignore[arg-type]
    with pytest.raises(LensplugError, match="leave normalize out"):
        analysis.gradient_rollout(kept, none, contributions="signed", normalize=True)
