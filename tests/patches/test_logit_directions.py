"""Attributions sum to the logit without folding; before = after."""

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from lensplug.patches import LogitDirections


@pytest.fixture(params=["RMS", "RMSPre", "LN", "LNPre"])
def model(request):
    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=12, n_heads=2, d_head=8, d_vocab=20, act_fn="gelu",
        normalization_type=request.param, device="cpu", seed=0, initializer_range=0.5,
    )  # fmt: skip
    model = HookedTransformer(cfg)
    if request.param in ("LN", "RMS"):
        model.ln_final.w.data = torch.rand(16) * 3
    return model


TOKENS = torch.arange(8)[None]


def attributed(cache, token):
    return cache.logit_attrs(cache.decompose_resid(mode="all"), tokens=token).sum(0)


def test_attributions_sum_to_the_logit(model):
    with LogitDirections(model):
        logits, cache = model.run_with_cache(TOKENS)
        torch.testing.assert_close(attributed(cache, 5), logits[..., 5], atol=1e-4, rtol=1e-4)
        answers = torch.full((1, 8), 7)
        torch.testing.assert_close(attributed(cache, answers), logits[..., 7], atol=1e-4, rtol=1e-4)


def test_without_the_patch_they_do_not_where_the_norm_has_weights(model):
    logits, cache = model.run_with_cache(TOKENS)
    close = torch.allclose(attributed(cache, 5), logits[..., 5], atol=1e-2)
    assert close == (model.cfg.normalization_type in ("LNPre", "RMSPre"))


def test_before_is_after_also_when_something_raises(model):
    before = model.tokens_to_residual_directions(5).clone()
    with pytest.raises(ZeroDivisionError), LogitDirections(model):
        raise ZeroDivisionError
    torch.testing.assert_close(model.tokens_to_residual_directions(5), before, atol=0, rtol=0)
    assert "tokens_to_residual_directions" not in model.__dict__
