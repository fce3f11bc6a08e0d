"""Overflow and NaN are refused where they arise, on both engines: their maps look like any other."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.built import ENGINES
from support.caches import cache_of_patterns, causal_patterns, padded, run, text_model, tokens
from support.models import text_model as hf_text_model

import lensplug
from lensplug import LensplugError, analysis
from lensplug.validation.finite import refuse_not_finite


@pytest.fixture(scope="module", params=ENGINES)
def text_lens(request):
    return lensplug.wrap(hf_text_model("qwen2"), engine=request.param, check=False)


@pytest.fixture
def inputs(text_lens):
    ids = torch.arange(3, 15)[None]
    return text_lens.encode({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


@pytest.mark.parametrize("bad", [[torch.nan], [torch.inf], [-torch.inf, torch.inf], [torch.inf, 1.0, torch.nan]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_number_that_is_not_finite_is_counted(bad, dtype):
    value = torch.ones(3, 50, dtype=dtype)
    value[1, 7 : 7 + len(bad)] = torch.tensor(bad, dtype=dtype)
    count = sum(not math.isfinite(number) for number in bad)
    with pytest.raises(LensplugError, match=rf"values hold NaN or infinity \({count} of 150 numbers\): mend it."):
        refuse_not_finite("values", value, "mend it")


@pytest.mark.parametrize("largest", [torch.finfo(dtype).max for dtype in (torch.float16, torch.bfloat16)])
def test_large_numbers_whose_sum_overflows_are_finite(largest):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        value = torch.full((4, 4), min(largest, torch.finfo(dtype).max), dtype=dtype)
        refuse_not_finite("values", value, "")
        refuse_not_finite("values", value[:0], "")


EACH_RUN = {
    "whole": lambda lens, inputs: lens.run_with_cache(inputs),
    "rows": lambda lens, inputs: lens.run_with_cache(inputs, query_positions=[-1]),
    "rollout": lambda lens, inputs: lens.run_with_cache(inputs, needs=[], keep="rollout"),
    "head_mean": lambda lens, inputs: lens.run_with_cache(inputs, needs=[], keep="head_mean"),
    "residuals": lambda lens, inputs: lens.run_with_cache(inputs, needs=[analysis.logit_lens]),
    "gradients": lambda lens, inputs: lens.run_with_gradients(inputs, target=3),
    "cam": lambda lens, inputs: lens.run_with_gradients(inputs, target=3, keep="cam"),
    "gradient_rollout": lambda lens, inputs: lens.run_with_gradients(inputs, target=3, keep="gradient_rollout"),
    "hooks": lambda lens, inputs: lens.run_with_hooks(inputs),
    "answer": lambda lens, inputs: lens.generate(inputs, max_new_tokens=2),
}
each_run = pytest.mark.parametrize("go", EACH_RUN.values(), ids=EACH_RUN)


@each_run
def test_embeddings_that_hold_nan(text_lens, inputs, go):
    embeds = inputs.embeds.clone()
    embeds[0, 10] = torch.nan
    with pytest.raises(LensplugError, match="the embeddings hold NaN or infinity"):
        go(text_lens, replace(inputs, embeds=embeds))
    go(text_lens, inputs)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_number_of_the_last_residual(text_lens, inputs, bad):
    def spoil(resid, hook):
        resid[0, 2, 5] = bad
        return resid

    last = text_lens.model.cfg.n_layers - 1
    with text_lens.model.hooks(fwd_hooks=[(f"blocks.{last}.hook_resid_post", spoil)]):
        with pytest.raises(LensplugError, match="the residual stream of a float32 model overflowed or became NaN"):
            EACH_RUN["rows"](text_lens, inputs)
    EACH_RUN["rows"](text_lens, inputs)


@each_run
def test_a_residual_stream_that_overflows(text_lens, inputs, go):
    def overflow(resid, hook):
        return resid.index_fill(1, torch.tensor([-1]), 3e38) * 10

    with text_lens.model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", overflow)]):
        with pytest.raises(LensplugError, match="overflowed or became NaN|NaN or infinity"):
            go(text_lens, inputs)


@pytest.mark.parametrize("name", ["whole", "residuals", "hooks"])
def test_scores_that_overflow_in_half_precision(name):
    """HookedTransformer makes rows of zeros of them, and finite logits."""
    model = hf_text_model("qwen2").half()
    lens = lensplug.wrap(model, check=False)
    ids = torch.arange(3, 15)[None]
    inputs = lens.encode({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    EACH_RUN[name](lens, inputs)
    with torch.no_grad():
        for projection in (model.model.layers[1].self_attn.q_proj, model.model.layers[1].self_attn.k_proj):
            projection.bias.fill_(200.0)
    with pytest.raises(LensplugError, match="attention scores of a float16 model overflowed.*use bfloat16 or float32"):
        EACH_RUN[name](lens, inputs)
    logits, cache = lens.run_with_cache(inputs, query_positions=[-1], logit_positions=[-1])  # SDPA, and rows in fp32
    assert logits is not None and bool(logits.isfinite().all())
    torch.testing.assert_close(cache["pattern", 1].sum(dim=-1), torch.ones(1, 4, 1))


def test_scores_that_a_hook_masks_are_no_overflow(text_lens, inputs):
    def shut(scores, hook):
        scores[:, :, 5:, :5] = -torch.inf
        return scores

    text_lens.run_with_hooks(inputs, fwd_hooks=[("blocks.1.attn.hook_attn_scores", shut)])


@pytest.mark.parametrize("model_input", ["pixel_values"])
def test_pixels_that_hold_nan(lens, inputs_of_a_picture, model_input):
    broken = {**inputs_of_a_picture.model_inputs}
    broken[model_input] = broken[model_input].clone()
    broken[model_input].view(-1)[7] = torch.nan
    with pytest.raises(LensplugError, match=f"the {model_input} hold NaN or infinity .1 of"):
        lens.encode(broken)


@pytest.fixture
def inputs_of_a_picture(lens, picture):
    return lens.prepare("What is the color?", images=[picture])


READ = {
    "attention_rollout": analysis.attention_rollout,
    "max": lambda cache: analysis.attention_rollout(cache, head_fusion="max"),
    "attention_flow": lambda cache: analysis.attention_flow(cache, row=5),
    "attention_from": lambda cache: analysis.attention_from(cache, queries=3),
    "received_attention": lambda cache: analysis.received_attention(cache, layer=1),
    "attention_matrix": lambda cache: analysis.attention_matrix(cache, layer=1),
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
@pytest.mark.parametrize("known", [True, False], ids=["mask-known", "mask-unknown"])
@pytest.mark.parametrize("row", [0, 3])
def test_rows_of_zeros_in_a_cache_are_refused(read, known, row):
    patterns = causal_patterns(2, 1, 2, 6)
    cache = cache_of_patterns(patterns)
    read(cache)
    patterns[1][0, 1, row] = 0.0
    if not known:
        del cache.attention_mask
    with pytest.raises(LensplugError, match="'blocks.1.attn.hook_pattern' has rows that do not sum to 1"):
        read(cache)


def test_rows_of_padding_are_none_of_it():
    """TransformerLens leaves them empty in front; and it may leave anything behind."""
    ids, mask = padded([tokens(1, 5)[0], tokens(1, 9)[0]], left=True)
    _, cache = run(text_model(), ids, mask)
    analysis.attention_rollout(cache, rows=8)  # the mask is not known to the cache
    cache.attention_mask = mask
    analysis.attention_rollout(cache, rows=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_overflow(dtype):
    length = 2000
    pattern = torch.rand(1, 1, length, length).square().tril()
    pattern = (pattern / pattern.sum(dim=-1, keepdim=True)).to(dtype)
    analysis.attention_from(cache_of_patterns([pattern]), queries=length - 1)
