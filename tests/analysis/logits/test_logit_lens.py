"""The logit lens: its last entry is the model's own output; ranks, KL and memory by hand."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from support.beside import gemma3
from support.built import ENGINES
from support.caches import ROTARY, LiveMemory, cache_of_residuals, padded, run, text_model, tokens, word_tokenizer
from support.models import text_model as hf_text_model
from support.tolerances import rounding
from torch.nn.functional import kl_div
from transformer_lens import ActivationCache

import lensplug
from lensplug.analysis import LogitLens, logit_lens
from lensplug.analysis.logits.logit_lens import Measure
from lensplug.errors import LensplugError

FORMS: dict[str, dict[str, Any]] = {
    "LN": {"normalization_type": "LN"},
    "LNPre": {"normalization_type": "LNPre"},
    "LN-final-RMS": {"normalization_type": "LN", "final_rms": True},
    "LNPre-final-RMS": {"normalization_type": "LNPre", "final_rms": True},
    "RMS": {"normalization_type": "RMS"},
    "RMSPre": {"normalization_type": "RMSPre"},
    "none": {"normalization_type": None},
    "soft-cap": {"normalization_type": "RMS", "output_logits_soft_cap": 2.0},
    "rotary": ROTARY,
    "large-eps": {"normalization_type": "LN", "eps": 0.5},
}
"""Every final norm that HookedTransformer knows."""

NUMBERS = ("top_probabilities", "log_probability", "entropy", "kl_to_last")


def last_entry_is(result: LogitLens, logits: torch.Tensor, *, entry: int = -1, atol: float = 2e-6) -> None:
    """An entry against softmax of logits `[example position vocabulary]`, in double precision."""
    log_p = logits.double().log_softmax(dim=-1)
    top = log_p.topk(result.top_tokens.shape[-1], dim=-1)
    same_tokens(result.top_tokens[:, entry], log_p)
    of_target = log_p.gather(-1, result.target[..., None])[..., 0]
    for found, expected in [
        (result.top_probabilities, top.values.exp()),
        (result.log_probability, of_target),
        (result.entropy, torch.special.entr(log_p.exp()).sum(dim=-1)),
    ]:
        torch.testing.assert_close(found[:, entry], expected.float(), atol=atol, rtol=1e-5)


def same_tokens(found: torch.Tensor, log_p: torch.Tensor) -> None:
    """Different tokens, those on top; of two that rounding cannot tell apart either may come first."""
    assert all(len(set(ids)) == len(ids) for ids in found.flatten(0, -2).tolist())
    allowed = rounding(torch.float32, log_p.shape[-1], log_p)
    best = log_p.topk(found.shape[-1], dim=-1).values
    torch.testing.assert_close(log_p.gather(-1, found), best, atol=allowed, rtol=0)


def ranks_are_of(result: LogitLens, model: Any, cache: Any) -> None:
    """Of the target among the model's own logits; tokens that rounding cannot tell from it count either way."""
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers))]
    for entry, name in enumerate(names):
        residual = cache[name]
        at = result.positions[..., None].expand(-1, -1, residual.shape[-1])
        with torch.no_grad():
            logits = model.unembed(model.ln_final(residual.gather(1, at)))
        own, slack = logits.gather(-1, result.target[..., None]), rounding(torch.float32, 2 * at.shape[-1], logits)
        surely, perhaps = (logits > own + slack).sum(dim=-1), (logits > own - slack).sum(dim=-1)
        assert bool(((surely < result.rank[:, entry]) & (result.rank[:, entry] <= perhaps)).all())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_last_entry_is_the_output_of_the_model(form):
    model = text_model(**form)
    logits, cache = run(model, tokens(2, 9), names_filter=logit_lens.needs)
    assert len(cache) == model.cfg.n_layers + 1
    result = logit_lens(cache, positions=None, top_k=4)
    last_entry_is(result, logits)
    same_tokens(result.target[..., None], logits.double().log_softmax(dim=-1))
    assert bool((result.rank[:, -1] == 1).all())
    assert bool((result.kl_to_last[:, -1] == 0).all())
    assert "final norm" in result.provenance.convention
    # Earlier entries: the model's own final norm and unembedding, called on that layer's residual.
    for entry, name in enumerate(["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(2))]):
        with torch.no_grad():
            logits = model.unembed(model.ln_final(cache[name]) if hasattr(model, "ln_final") else cache[name])
        cap = model.cfg.output_logits_soft_cap
        last_entry_is(result, cap * torch.tanh(logits / cap) if cap > 0 else logits, entry=entry)


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("form", ["LN", "rotary"])
def test_a_bfloat16_model_gives_its_own_output(form, biased):
    model = text_model(dtype=torch.bfloat16, **FORMS[form])
    model.unembed.b_U.data.mul_(biased)
    logits, cache = run(model, tokens(1, 9))
    gives_its_own_output(logits, logit_lens(cache, positions=None, top_k=1))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_the_core_of_a_bfloat16_model_does_so_too(engine, name):
    """An engine's norms are another way than those of TransformerLens alone."""
    if name == "gemma3" and engine != "bridge":
        pytest.skip("Gemma 3 runs on the bridge alone")
    hf = gemma3() if name == "gemma3" else hf_text_model(name)
    logits, cache = run(lensplug.wrap(hf.bfloat16(), engine=engine, check=False).model, tokens(1, 9))
    gives_its_own_output(logits, logit_lens(cache, positions=None, top_k=1))


def gives_its_own_output(logits, result):
    """In most rows nothing but the sums of single precision differ. A product of other shape may add up in another
    order, and where its sum lies between two numbers of bfloat16 round to the other one: seldom, and to the next only.
    """
    log_p = logits.double().log_softmax(dim=-1).amax(dim=-1)
    off = (result.log_probability[:, -1] - log_p).abs()
    assert float(off.median()) <= rounding(torch.float32, logits.shape[-1], log_p.abs().clamp(min=1))
    assert float(off.max()) <= rounding(torch.bfloat16, 2, logits.float())
    assert result.top_probabilities.dtype == torch.float32 and result.provenance.dtype == "bfloat16"


@pytest.mark.parametrize("form", [FORMS["LN"], FORMS["RMS"]], ids=["LN", "RMS"])
def test_the_raw_convention_unembeds_the_residual_as_it_is(form):
    model = text_model(**form)
    _, cache = run(model, tokens(2, 6))
    result = logit_lens(cache, positions=None, final_norm=False)
    for entry, name in enumerate(["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(3))]):
        last_entry_is(result, cache[name] @ model.W_U + model.b_U, entry=entry, atol=1e-5)
    assert "raw residual" in result.provenance.convention


def of_logits(logits: list[list[float]], **options: Any) -> LogitLens:
    """A model of one position whose raw residuals are the given logits, entry by entry."""
    width = len(logits[0])
    model = text_model(n_layers=len(logits) - 1, d_model=width, d_vocab=width, n_heads=1, d_head=2)
    model.unembed.W_U.data.copy_(torch.eye(width))
    model.unembed.b_U.data.zero_()
    residuals = [torch.tensor([[row]], dtype=torch.float32) for row in logits]
    return logit_lens(cache_of_residuals(residuals, model), final_norm=False, top_k=2, **options)


def test_rank_by_hand_and_ties_share_the_better_rank():
    result = of_logits([[3, 2, 1, 0], [1, 2, 2, 3], [2, 2, 2, 2], [0, 1, 5, 2]], target=2)
    assert result.rank[0, :, 0].tolist() == [3, 2, 1, 1]
    assert result.target_texts == [["2"]] and result.entries == ["embed", "0", "1", "2"]
    assert of_logits([[3, 2, 1, 0], [0, 1, 5, 2]]).rank[0, :, 0].tolist() == [3, 1]  # of the final answer, 2


@pytest.mark.parametrize(
    ("tops", "expected"),
    [([1, 1, 1, 1], -1), ([0, 1, 1, 1], 0), ([1, 0, 1, 1], 1), ([0, 0, 0, 1], 2), ([1, 1, 1, 0], 3)],
)
def test_the_settled_layer_by_hand(tops, expected):
    rows = [[float(token == top) for token in range(3)] for top in tops]
    assert of_logits(rows, target=1).settled_layer.tolist() == [[expected]]


def test_kl_is_that_of_torch_and_extreme_logits_give_no_nan():
    model = text_model()
    logits, cache = run(model, tokens(2, 7))
    result = logit_lens(cache, positions=[-1, 0])
    last = logits[:, [6, 0]].log_softmax(dim=-1)
    for entry, name in enumerate(["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(3))]):
        with torch.no_grad():
            this = model.unembed(model.ln_final(cache[name]))[:, [6, 0]].log_softmax(dim=-1)
        by_torch = kl_div(this, last, log_target=True, reduction="none").sum(dim=-1)
        torch.testing.assert_close(result.kl_to_last[:, entry], by_torch, atol=2e-6, rtol=1e-5)
    assert float(result.kl_to_last[:, 0].min()) > 0.01
    extreme = of_logits([[0.0, 0.0], [0.0, 1000.0]])
    torch.testing.assert_close(extreme.kl_to_last[0, :, 0], torch.tensor([math.log(2), 0.0]))
    torch.testing.assert_close(extreme.entropy[0, :, 0], torch.tensor([math.log(2), 0.0]))


def test_small_chunks_give_the_same_and_hold_no_more_memory_than_allowed(monkeypatch):
    model = text_model(d_vocab=1000)
    logits, cache = run(model, tokens(3, 8))
    whole = logit_lens(cache, positions=None)
    module, rows = sys.modules["lensplug.analysis.logits.logit_lens"], []
    unembed = module.unembed

    def counted(model, residual, **kwargs):
        rows.append(len(residual))
        return unembed(model, residual, **kwargs)

    monkeypatch.setattr(module, "unembed", counted)
    for chunk_bytes in (1, 100_000, 300_000):
        rows.clear()
        with LiveMemory(1000) as memory:
            small = logit_lens(cache, positions=None, chunk_bytes=chunk_bytes)
        assert sum(rows) == 4 * 24  # each row once for each entry
        assert torch.equal(small.positions, whole.positions)
        same_tokens(small.top_tokens[:, -1], logits.double().log_softmax(dim=-1))
        same_tokens(small.target[..., None], logits.double().log_softmax(dim=-1))
        ranks_are_of(small, model, cache)
        for name in NUMBERS:
            torch.testing.assert_close(getattr(small, name), getattr(whole, name), atol=2e-6, rtol=1e-5)
        assert memory.peak > 0 and (chunk_bytes == 1 or memory.peak <= chunk_bytes)
        assert max(rows) == 1 if chunk_bytes == 1 else max(rows) > 1


def test_the_process_does_not_grow_with_every_chunk():
    """Small results that stay between large buffers keep the heap from using their place again: LiveMemory, which
    counts tensors, cannot see that."""
    vocabulary, layers, positions = 152_000, 24, 48  # chunks just under what the C library takes from the system
    generator = torch.Generator().manual_seed(0)
    cfg = SimpleNamespace(
        n_layers=layers, normalization_type=None, output_logits_soft_cap=0.0, dtype=torch.float32, model_name="wide"
    )
    unembed = SimpleNamespace(W_U=torch.randn(4, vocabulary, generator=generator), b_U=torch.zeros(vocabulary))
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(layers))]
    residuals = {name: torch.randn(1, positions, 4, generator=generator) for name in names}
    cache = ActivationCache(residuals, SimpleNamespace(cfg=cfg, unembed=unembed, tokenizer=None))
    logit_lens(cache, positions=range(8))  # what a few chunks take may stay
    before = psutil.Process().memory_info().rss
    logit_lens(cache, positions=range(positions))
    assert psutil.Process().memory_info().rss - before < 3e8


def test_a_target_is_a_word_an_id_or_a_tensor():
    model = text_model()
    model.tokenizer = word_tokenizer()
    logits, cache = run(model, tokens(2, 5))
    log_p = logits.log_softmax(dim=-1)
    ids = torch.tensor([[1, 3, 2], [2, 0, 1]])
    targets: list[tuple[Any, torch.Tensor]] = [
        ("green", torch.full((2, 3), 2)),
        (2, torch.full((2, 3), 2)),
        (torch.tensor(2), torch.full((2, 3), 2)),
        (torch.tensor([1, 3]), torch.tensor([[1] * 3, [3] * 3])),
        (ids, ids),
    ]
    for target, expected in targets:
        result = logit_lens(cache, positions=[0, 3, -1], target=target)
        assert torch.equal(result.target, expected)
        at = log_p[:, [0, 3, 4]].gather(-1, expected[..., None])[..., 0]
        torch.testing.assert_close(result.log_probability[:, -1], at, atol=2e-6, rtol=1e-5)
        ranks_are_of(result, model, cache)
    words = logit_lens(cache, target="green")
    assert words.target_texts == [["green"], ["green"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "red circle"}, r"'red circle' is 2 tokens \('red', 'circle'\), expected one"),
        ({"target": 50}, r"whole numbers from 0 to 49, got 50"),
        ({"target": -1}, r"whole numbers from 0 to 49, got -1"),
        ({"target": torch.tensor([1.0, 2.0])}, "whole numbers"),
        ({"target": torch.tensor([1, 2, 3])}, r"target has the shape \[3\], expected one id, \[2\] or \[2, 1\]"),
        ({"target": torch.zeros(2, 1, 1, dtype=torch.long)}, r"target has the shape \[2, 1, 1\]"),
        ({"positions": 5}, r"position 5 is out of range .* 0 to 4 \(or -5 to -1\)"),
        ({"positions": [0, -6]}, "position -6 is out of range"),
        ({"positions": []}, "positions is empty"),
        ({"top_k": 0}, "top_k is 0, expected 1 to 50"),
        ({"top_k": 51}, "top_k is 51"),
        ({"attention_mask": torch.ones(2, 4, dtype=torch.long)}, r"attention_mask has the shape \[2, 4\]"),
    ],
)
def test_what_cannot_be_read_is_refused(options, message):
    model = text_model()
    model.tokenizer = word_tokenizer()
    _, cache = run(model, tokens(2, 5))
    with pytest.raises(LensplugError, match=message):
        logit_lens(cache, **options)


def test_a_word_needs_a_tokenizer():
    _, cache = run(text_model(), tokens(1, 5))
    with pytest.raises(LensplugError, match="there is no tokenizer: give a token id"):
        logit_lens(cache, target="red")


def test_permanent_hooks_of_the_user_are_not_fired():
    model = text_model()
    _, cache = run(model, tokens(1, 5))
    before, fired = logit_lens(cache), []

    def hook(activation, hook):
        fired.append(hook.name)
        return activation * 0

    for name in ("ln_final.hook_normalized", "ln_final.hook_scale", "unembed.hook_in", "unembed.hook_out"):
        if name in model.hook_dict:
            model.add_perma_hook(name, hook)
    run(model, tokens(1, 5))
    assert fired  # they do fire in the model
    fired.clear()
    after = logit_lens(cache)
    assert not fired and torch.equal(after.log_probability, before.log_probability)


@pytest.mark.parametrize("form", [FORMS["LN"], ROTARY], ids=["gpt2", "rotary-rms"])
def test_a_left_padded_batch_equals_each_example_alone(form):
    model = text_model(**form)
    rows = [tokens(1, n, seed=n)[0] for n in (4, 9)]
    ids, mask = padded(rows, left=True)
    _, cache = run(model, ids, mask)
    batch = logit_lens(cache, positions=[-1, -3], attention_mask=mask)
    ranks_are_of(batch, model, cache)
    assert batch.positions.tolist() == [[8, 6], [8, 6]]
    for example, row in enumerate(rows):
        alone = logit_lens(run(model, row[None])[1], positions=[-1, -3])
        ranks_are_of(alone, model, run(model, row[None])[1])
        for name in NUMBERS:
            torch.testing.assert_close(getattr(batch, name)[example], getattr(alone, name)[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(LensplugError, match="position 4 is out of range or padding in example 0"):
        logit_lens(cache, positions=4, attention_mask=mask)


def test_the_table_has_one_row_for_each_example_position_and_entry():
    model = text_model()
    _, cache = run(model, tokens(2, 6))
    result = logit_lens(cache, positions=[-1, 2])
    table = result.to_dataframe()
    assert len(table) == 2 * 2 * 4
    entry = table[(table["example"] == 1) & (table["position"] == 2) & (table["entry"] == "1")].iloc[0]
    assert entry["target_rank"] == int(result.rank[1, 2, 1]) and entry["top_token"] == str(
        int(result.top_tokens[1, 2, 1, 0])
    )
    assert entry["kl_to_last_nats"] == pytest.approx(float(result.kl_to_last[1, 2, 1]))


def test_positions_of_each_example_are_a_tensor():
    model = text_model()
    _, cache = run(model, tokens(2, 9), names_filter=logit_lens.needs)
    each = torch.tensor([[2, 5, -1], [0, 7, -9]])
    result = logit_lens(cache, positions=each)
    assert result.positions.tolist() == [[2, 5, 8], [0, 7, 0]] and result.length.tolist() == [9, 9]
    everywhere = logit_lens(cache, positions=None)
    ranks_are_of(result, model, cache)
    ranks_are_of(everywhere, model, cache)
    for example, own in enumerate(result.positions):
        torch.testing.assert_close(result.entropy[example], everywhere.entropy[example][:, own])
    assert torch.equal(logit_lens(cache, positions=torch.tensor([2, 5])).positions, torch.tensor([[2, 5], [2, 5]]))
    with pytest.raises(LensplugError, match=r"positions are \[1, 3\], expected a row for each of 2 examples"):
        logit_lens(cache, positions=each[:1])


def test_values_by_position_for_overlays():
    _, cache = run(text_model(), tokens(2, 9), names_filter=logit_lens.needs)
    result = logit_lens(cache, positions=[2, 5], target=3)
    measures: dict[Measure, torch.Tensor] = {
        "probability": result.log_probability.exp(),
        "log_probability": result.log_probability,
        "rank": result.rank.float(),
        "reciprocal_rank": 1 / result.rank,
        "entropy": result.entropy,
        "kl_to_last": result.kl_to_last,
    }
    for measure, expected in measures.items():
        rows = result.by_position(1, measure=measure)
        assert list(rows) == ["embed", "layer 0", "layer 1", "layer 2"]
        for entry, row in enumerate(rows.values()):
            assert row.shape == (9,) and row.isnan().sum() == 7
            assert torch.equal(row[[2, 5]], expected[1, entry])
    with pytest.raises(LensplugError, match="measure is 'loss', expected 'probability'"):
        result.by_position(measure="loss")  # type: ignore[arg-type]
    with pytest.raises(LensplugError, match="example is 2, there are 2"):
        result.by_position(2)
