"""run_with_cache with chosen positions: the same model and the same analyses, with the rows that were asked for."""

from __future__ import annotations

import pytest
import torch
from support.models import three_prompts

import lensplug
from lensplug import LensplugError, analysis


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


@pytest.fixture(scope="module")
def batch(lens):
    return three_prompts(lens)


@pytest.fixture(scope="module")
def whole(lens, batch):
    return lens.run_with_cache(batch)


def test_rows_logits_and_residuals_are_those_of_the_whole_run(lens, batch, whole):
    logits, cache = lens.run_with_cache(batch, query_positions=[-1, -4])
    assert torch.equal(
        cache.query_positions, torch.tensor([[batch.tokens.shape[1] - 1, batch.tokens.shape[1] - 4]] * 3)
    )
    attended = batch.attention_mask.bool()
    torch.testing.assert_close(logits[attended], whole[0][attended], atol=1e-3, rtol=1e-4)
    for layer in range(6):
        rows = whole[1]["pattern", layer][:, :, [-1, -4]]
        torch.testing.assert_close(cache["pattern", layer], rows, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            cache["resid_post", layer][attended], whole[1]["resid_post", layer][attended], atol=1e-4, rtol=1e-4
        )
    again, full = lens.run_with_cache(batch)
    assert torch.equal(again, whole[0]) and full.query_positions is None


def test_analyses_that_read_rows_give_the_same(lens, batch, whole):
    _, cache = lens.run_with_cache(batch, query_positions=[-1, -4])
    for query in (-1, -4):
        chosen = analysis.head_specialization(cache, batch.modality, query=query)
        expected = analysis.head_specialization(whole[1], batch.modality, query=query)
        for name in ("mass", "chance", "entropy", "largest"):
            torch.testing.assert_close(
                getattr(chosen, name), getattr(expected, name), atol=1e-5, rtol=1e-4, equal_nan=True
            )
    looked = analysis.attention_from(cache, queries=[-4, -1, -4])
    torch.testing.assert_close(
        looked.values, analysis.attention_from(whole[1], queries=[-4, -1, -4]).values, atol=1e-5, rtol=0
    )
    said, from_whole = analysis.logit_lens(cache, positions=None), analysis.logit_lens(whole[1], positions=None)
    attended = batch.attention_mask.bool()[:, None].expand_as(said.rank)
    torch.testing.assert_close(
        said.log_probability[attended], from_whole.log_probability[attended], atol=1e-3, rtol=1e-3
    )


def test_positions_of_each_example(lens, batch, whole):
    each = torch.tensor([[-1], [-2], [-3]])
    _, cache = lens.run_with_cache(batch, query_positions=each)
    for example, at in enumerate((-1, -2, -3)):
        torch.testing.assert_close(
            cache["pattern", 2][example, :, 0], whole[1]["pattern", 2][example, :, at], atol=1e-5, rtol=0
        )


def test_what_needs_other_rows_says_what_to_type(lens, batch):
    _, cache = lens.run_with_cache(batch, query_positions=[-1])
    with pytest.raises(LensplugError, match=r"reads the positions .*, the cache holds .*query_positions= that has"):
        analysis.head_specialization(cache, batch.modality, query=-2)
    with pytest.raises(LensplugError, match="attention_rollout needs every row: run without query_positions"):
        analysis.attention_rollout(cache, rows=-1)
    with pytest.raises(LensplugError, match="received_attention needs every row"):
        analysis.received_attention(cache)


def test_no_rows_and_positions_that_are_none(lens, batch):
    _, cache = lens.run_with_cache(batch, query_positions=[])
    assert cache["pattern", 0].shape[2] == 0
    _, cache = lens.run_with_cache(batch, query_positions=[], remove_batch_dim=False)
    assert cache["pattern", 0].shape[2] == cache["attn_scores", 0].shape[2] == 0
    with pytest.raises(LensplugError, match="reads the positions"):
        analysis.attention_from(cache)
    with pytest.raises(LensplugError, match="position 999 is out of range"):
        lens.run_with_cache(batch, query_positions=999)


def test_an_edit_of_a_pattern_is_refused_and_leaves_nothing_behind(lens, batch, whole):
    lens.model.add_hook("blocks.1.attn.hook_pattern", lambda pattern, hook: pattern * 0)
    try:
        with pytest.raises(LensplugError, match="a hook edits attention scores or patterns"):
            lens.run_with_cache(batch, query_positions=[-1])
    finally:
        lens.model.reset_hooks()
    assert torch.equal(lens.run_with_cache(batch)[0], whole[0])


@pytest.mark.parametrize(
    "run",
    [
        lambda lens, batch: lens.run_with_cache(batch, query_positions=[]),
        lambda lens, batch: lens.run_with_cache(batch, query_positions=[], remove_batch_dim=False),
        lambda lens, batch: lens.run_with_cache(batch, names_filter=[], keep="rollout"),
        lambda lens, batch: lens.run_with_gradients(batch, target=7, keep="cam"),
        lambda lens, batch: lens.logits_at(batch, torch.full((3, 1), batch.tokens.shape[1] - 1)),
    ],
    ids=["no rows", "no rows, an option of TransformerLens", "keep", "gradients", "logits"],
)
@pytest.mark.parametrize("name", ["hook_pattern", "hook_attn_scores"])
def test_an_edit_is_noticed_where_no_row_is_kept(lens, batch, whole, run, name):
    def hide_the_image(value, hook):
        value[..., 5:20] = 0 if hook.name.endswith("pattern") else -torch.inf
        return value

    run(lens, batch)
    lens.model.add_hook(f"blocks.1.attn.{name}", hide_the_image)
    try:
        with pytest.raises(LensplugError, match="a hook edits attention scores or patterns"):
            run(lens, batch)
    finally:
        lens.model.reset_hooks()
    assert torch.equal(lens.run_with_cache(batch)[0], whole[0])


def test_residuals_and_logits_at_chosen_positions(lens, batch, whole):
    length = batch.tokens.shape[1]
    needs = [analysis.head_specialization, analysis.logit_lens]
    logits, cache = lens.run_with_cache(
        batch, needs=needs, query_positions=[-1], residual_positions=[-1, -3], logit_positions=[-1, -2]
    )
    wanted = (analysis.head_specialization.needs, analysis.logit_lens.needs)
    assert set(cache) == {name for name in whole[1] if any(reads(name) for reads in wanted)}
    assert logits.shape == (3, 2, lens.model.cfg.d_vocab)
    torch.testing.assert_close(logits, whole[0][:, [-1, -2]], atol=1e-3, rtol=1e-4)
    for layer in range(6):
        assert cache["resid_post", layer].shape == (3, 2, 96)
        expected = whole[1]["resid_post", layer][:, [-1, -3]]
        torch.testing.assert_close(cache["resid_post", layer], expected, atol=1e-4, rtol=1e-4)
    for positions in (-1, [-3, -1]):
        said, expected = (analysis.logit_lens(one, positions=positions) for one in (cache, whole[1]))
        assert torch.equal(said.positions, expected.positions) and torch.equal(said.length, expected.length)
        assert said.length.tolist() == [length] * 3
        torch.testing.assert_close(said.log_probability, expected.log_probability, atol=1e-3, rtol=1e-3)
    with pytest.raises(LensplugError, match="logit_lens reads the positions .*residual_positions= that has them"):
        analysis.logit_lens(cache, positions=-2)
    with pytest.raises(LensplugError, match="logit_lens reads the positions"):
        analysis.logit_lens(cache, positions=None)


def test_the_whole_residual_with_one_need_and_on_the_cpu(lens, batch, whole):
    logits, cache = lens.run_with_cache(
        batch, needs=analysis.logit_lens, residual_positions=torch.tensor([[-1], [-2], [-1]]), device="cpu",
        return_type=None,
    )  # fmt: skip
    assert logits is None and len(cache) == 7
    torch.testing.assert_close(cache["resid_post", 3][1, 0], whole[1]["resid_post", 3][1, -2], atol=1e-4, rtol=1e-4)


def test_options_that_do_not_go_together_are_refused(lens, batch):
    for options, message in (
        ({"needs": analysis.logit_lens, "names_filter": "hook_embed"}, "give one of them"),
        ({"logit_positions": [-1], "return_type": "loss"}, "a loss needs the logits of every position"),
        ({"residual_positions": [-1], "remove_batch_dim": True}, "remove_batch_dim cannot be given"),
        ({"keep": "rollout", "stop_at_layer": 2}, "with keep, stop_at_layer cannot be given"),
    ):
        with pytest.raises(LensplugError, match=message):
            lens.run_with_cache(batch, **options)
    assert lens.run_with_cache(batch, logit_positions=[])[0].shape[1] == 0


def test_means_over_heads_serve_rollout_and_received_attention(lens, batch, whole):
    needs = [analysis.attention_rollout, analysis.head_specialization]
    _, cache = lens.run_with_cache(batch, needs=needs, query_positions=[-1], keep="head_mean")
    for layer in range(6):
        mean = whole[1]["pattern", layer].mean(dim=1)
        torch.testing.assert_close(cache[f"blocks.{layer}.attn.head_mean"], mean, atol=1e-5, rtol=0)
    for rows in (-1, None):
        chosen, expected = (analysis.attention_rollout(one, rows=rows) for one in (cache, whole[1]))
        torch.testing.assert_close(chosen.values, expected.values, atol=1e-5, rtol=0)
    received, of_whole = (analysis.received_attention(one, layer=3, exclude_sink=True) for one in (cache, whole[1]))
    torch.testing.assert_close(received.values, of_whole.values, atol=1e-4, rtol=1e-3, equal_nan=True)
    assert analysis.head_specialization(cache, batch.modality).modalities == ("text", "image", "sink")
    for refused in (
        lambda: analysis.attention_rollout(cache, head_fusion="max"),
        lambda: analysis.received_attention(cache, head=1),
    ):
        with pytest.raises(LensplugError, match="needs every row: run without query_positions"):
            refused()
    _, alone = lens.run_with_cache(batch, names_filter=[], keep="head_mean", device="cpu")
    assert sorted(alone) == [f"blocks.{layer}.attn.head_mean" for layer in range(6)]
