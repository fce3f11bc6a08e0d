"""AttentionRows and BridgeAttentionRows: the model at the speed of SDPA, with the rows of its own eager patterns."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.built import ENGINES, attention_rows, built
from support.models import TEXT_CORES, largest_difference, reference_logits, snapshot, text_model, text_tokens

from lensplug import LensplugError

LENGTH = 24
MASKS = {"none": None, "left": slice(0, 5), "right": slice(19, LENGTH)}
ROWS = torch.tensor([[23, 7, 0], [18, 9, 6]])


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture
def rows_of(engine):
    """The patch."""
    return attention_rows(engine)


@pytest.fixture
def model(engine):
    return built(engine, text_model("qwen2"))


def mask_of(padding):
    """Two examples, the second padded."""
    if MASKS[padding] is None:
        return None
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, MASKS[padding]] = 0
    return mask


def of_rows(pattern, rows=ROWS):
    return pattern.gather(2, rows[:, None, :, None].expand(-1, pattern.shape[1], -1, pattern.shape[3]))


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("name", TEXT_CORES)
def test_rows_residuals_and_logits_are_those_of_the_eager_model(engine, rows_of, name, padding):
    hf = text_model(name)
    model, tokens, mask = built(engine, hf), text_tokens(LENGTH, 2), mask_of(padding)
    kept = torch.ones(2, LENGTH) if mask is None else mask
    with torch.no_grad():
        _, eager = model.run_with_cache(tokens, attention_mask=mask)
        with rows_of(model, ROWS):
            logits, fast = model.run_with_cache(tokens, attention_mask=mask)
    assert list(fast) == list(eager)
    reference = reference_logits(hf, {"input_ids": tokens} | ({} if mask is None else {"attention_mask": mask}))
    assert largest_difference(logits, reference, kept) < 1e-4
    for layer in range(3):
        for kind in ("pattern", "attn_scores"):
            full, chosen = of_rows(eager[kind, layer]), fast[kind, layer]
            assert chosen.shape == (2, 4, 3, LENGTH) and chosen.dtype == torch.float32
            assert torch.equal(full.isneginf(), chosen.isneginf())
            torch.testing.assert_close(chosen, full, atol=1e-5 if kind == "pattern" else 1e-3, rtol=1e-5)
        for kind in ("z", "resid_post", "q", "v", "rot_k"):
            torch.testing.assert_close(fast[kind, layer], eager[kind, layer], atol=2e-4, rtol=1e-4)
    if padding == "left":  # it sees nothing and gets nothing, as in the eager model
        assert not bool(fast["z", 0][1][mask[1] == 0].any())


def collect(seen, sizes, layer, start, pattern):
    sizes.add(pattern.shape[2])
    stop = start + pattern.shape[2]
    assert pattern.shape[3] == stop  # causal: no key is later than the last row
    seen.setdefault(layer, torch.zeros(2, 4, LENGTH, LENGTH))
    assert not bool(seen[layer][:, :, start:stop].any()), "the same rows twice"
    seen[layer][:, :, start:stop, :stop] = pattern


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("name", ["llama", "qwen2-window-some-layers", "qwen3-no-gqa-tied"])
def test_blocks_of_rows_together_are_the_whole_pattern(engine, rows_of, name, padding, monkeypatch):
    model, tokens, mask = built(engine, text_model(name)), text_tokens(LENGTH, 2), mask_of(padding)
    with torch.no_grad():
        logits, eager = model.run_with_cache(tokens, attention_mask=mask)
        for block_bytes in (1, 20_000, 2**27):
            monkeypatch.setattr("lensplug.patches.pattern_blocks.BLOCK_BYTES", block_bytes)
            seen: dict[int, torch.Tensor] = {}
            sizes: set[int] = set()
            each_block = partial(collect, seen, sizes)
            with rows_of(model, torch.empty(2, 0, dtype=torch.long), each_block=each_block):
                shown = model(tokens, attention_mask=mask)
            assert (max(sizes) == 1) == (block_bytes == 1) and (max(sizes) == LENGTH) == (block_bytes == 2**27)
            for layer in range(3):
                torch.testing.assert_close(seen[layer], eager["pattern", layer], atol=1e-5, rtol=0)
            kept = torch.ones(2, LENGTH) if mask is None else mask
            assert largest_difference(shown, logits, kept) < 1e-4


def test_no_rows_at_all(model, rows_of):
    with rows_of(model, torch.empty(1, 0, dtype=torch.long)), torch.no_grad():
        logits, cache = model.run_with_cache(text_tokens(LENGTH))
    assert cache["pattern", 1].shape == (1, 4, 0, LENGTH)
    assert largest_difference(logits, model(text_tokens(LENGTH))) < 1e-4


def test_keys_that_overflow_half_precision_are_finite_and_right(engine, rows_of):
    hf = text_model("qwen2-no-gqa", hidden_size=512, head_dim=128)
    with torch.no_grad():
        for layer in hf.get_decoder().layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight *= 0.02
                projection.bias.fill_(24.0)  # 24 x 24 x 128 = 73,728 > 65,504
    exact, half = built(engine, hf.float()), built(engine, text_model_like(hf))
    tokens = text_tokens(LENGTH)
    rows = torch.tensor([[23, 7]])
    with torch.no_grad():
        _, eager = half.run_with_cache(tokens)
        _, expected = exact.run_with_cache(tokens)
        with rows_of(half, rows):
            logits, fast = half.run_with_cache(tokens)
    assert bool(eager["attn_scores", 0].isinf().any() & (eager["attn_scores", 0] > 0).any())
    assert bool(logits.isfinite().all()) and fast["pattern", 0].dtype == torch.float32
    torch.testing.assert_close(fast["pattern", 0], of_rows(expected["pattern", 0], rows), atol=2e-2, rtol=0)


def text_model_like(hf):
    import copy

    return copy.deepcopy(hf).half()


def edit_scores(scores, hook):
    return scores * 0.5


def edit_scores_in_place(scores, hook):
    scores[..., 0] -= 1.0


def edit_pattern(pattern, hook):
    return pattern * 0


def edit_pattern_in_place(pattern, hook):
    pattern[..., 0] = 0


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("hook_attn_scores", edit_scores),
        ("hook_attn_scores", edit_scores_in_place),
        ("hook_pattern", edit_pattern),
        ("hook_pattern", edit_pattern_in_place),
    ],
)
def test_a_hook_that_edits_scores_or_patterns_is_refused(model, rows_of, name, edit):
    before = model(text_tokens(LENGTH))
    with (
        rows_of(model, torch.tensor([[3, 23]])),
        torch.no_grad(),
        pytest.raises(LensplugError, match="a hook edits attention scores or patterns"),
    ):
        model.run_with_hooks(text_tokens(LENGTH), fwd_hooks=[(f"blocks.1.attn.{name}", edit)])
    assert torch.equal(model(text_tokens(LENGTH)), before)


def test_other_hooks_act_and_gradients_flow(model, rows_of):
    tokens, rows = text_tokens(LENGTH), torch.tensor([[23]])

    def erase(z, hook):
        return z * (torch.arange(4) != 2)[None, None, :, None]

    with torch.no_grad():
        eager = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", erase)])
        with rows_of(model, rows):
            fast = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", erase)])
    assert largest_difference(fast, eager) < 1e-4 < largest_difference(eager, model(tokens))
    gradients = []
    for patch in (None, rows_of(model, rows)):
        if patch is not None:
            patch.apply()
        model(tokens)[0, -1, 5].backward()
        gradients.append(next(model.blocks[0].attn.parameters()).grad.clone())
        model.zero_grad()
        if patch is not None:
            patch.remove()
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)


def test_before_is_after_also_when_a_hook_raises(model, rows_of):
    tokens, before = text_tokens(LENGTH), snapshot(model)
    held = [dict(block.attn.__dict__) for block in model.blocks]
    logits = model(tokens)

    def fail(value, hook):
        raise RuntimeError("mine")

    patch = rows_of(model, torch.tensor([[1]]))
    with pytest.raises(RuntimeError, match="mine"), patch:
        assert patch.applied
        patch.apply()  # twice changes nothing
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.2.hook_resid_pre", fail)])
    assert not patch.applied and snapshot(model) == before
    assert [dict(block.attn.__dict__) for block in model.blocks] == held
    assert torch.equal(model(tokens), logits)


def test_what_it_does_not_know_is_refused(model, rows_of):
    with rows_of(model, torch.tensor([[1]])):
        with pytest.raises(LensplugError, match="rows are for 1 examples, the model runs on 2"):
            model(text_tokens(LENGTH, 2))
        with pytest.raises(LensplugError, match="not known with a key-value cache"):
            model.generate(text_tokens(LENGTH), max_new_tokens=2, verbose=False, stop_at_eos=False)


@pytest.mark.parametrize("engine", ENGINES[:1], indirect=True)
@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("attn_scores_soft_cap", 30.0, "a soft cap on scores"),
        ("positional_embedding_type", "alibi", "positions of the kind 'alibi'"),
    ],
)
def test_attention_of_another_kind_is_refused(model, rows_of, attribute, value, message):
    setattr(model.cfg, attribute, value)
    with pytest.raises(LensplugError, match=message):
        rows_of(model, torch.tensor([[1]]))


@pytest.mark.parametrize("engine", ["bridge"], indirect=True)
@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("sinks", torch.zeros(4), "attention sinks"),
        ("key_multiplier", 2.0, "scaled keys"),
    ],
)
def test_attention_of_another_kind_in_a_bridge_is_refused(model, rows_of, attribute, value, message):
    setattr(model.blocks[1].attn.original_component, attribute, value)
    with pytest.raises(LensplugError, match=message):
        rows_of(model, torch.tensor([[1]]))


@pytest.mark.parametrize("engine", ["bridge"], indirect=True)
def test_a_bridge_that_makes_results_of_heads_is_refused(model, rows_of):
    model.set_use_attn_result(True)
    with pytest.raises(LensplugError, match=r"lens.model.set_use_attn_result\(False\) first"):
        rows_of(model, torch.tensor([[1]]))
