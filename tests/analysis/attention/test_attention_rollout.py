"""Attention rollout against worked numbers and a plain recursion in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.caches import ROTARY, cache_of_patterns, causal_patterns, padded, run, text_model, tokens

from lensplug.analysis import attention_rollout
from lensplug.errors import LensplugError

A1 = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
A2 = torch.tensor([[1, 0, 0], [0.25, 0.75, 0], [0.4, 0.4, 0.2]])
WORKED = torch.tensor([[1, 0, 0], [0.34375, 0.65625, 0], [0.31, 0.24, 0.45]])
"""(A2 + I)/2 times (A1 + I)/2."""


def plain(patterns: list[torch.Tensor], residual: float = 0.5, fusion: str = "mean") -> np.ndarray:
    """The recursion of the paper in numpy, in double precision: `[example row pos]`."""
    fuse: Any = {"mean": np.mean, "max": np.max, "min": np.min}[fusion]
    length = patterns[0].shape[-1]
    product = np.broadcast_to(np.eye(length), (len(patterns[0]), length, length))
    for pattern in patterns:
        fused = fuse(pattern.double().numpy(), axis=1)
        fused = fused / fused.sum(axis=-1, keepdims=True)
        product = (residual * np.eye(length) + (1 - residual) * fused) @ product
    return product


def test_worked_numbers():
    result = attention_rollout(cache_of_patterns([A1[None, None], A2[None, None]]))
    torch.testing.assert_close(result.values[0], WORKED, atol=1e-6, rtol=0)
    assert result.rows.tolist() == [[0, 1, 2]]


def test_layers_in_the_wrong_order_give_other_numbers():
    swapped = attention_rollout(cache_of_patterns([A2[None, None], A1[None, None]])).values[0]
    assert float((swapped - WORKED).abs().max()) > 0.01


@pytest.mark.parametrize("residual", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_equals_the_plain_recursion(residual, fusion):
    patterns = causal_patterns(layers=5, batch=2, heads=4, length=11)
    result = attention_rollout(cache_of_patterns(patterns), residual=residual, head_fusion=fusion)
    np.testing.assert_allclose(result.values.numpy(), plain(patterns, residual, fusion), atol=1e-6)
    np.testing.assert_allclose(result.values.sum(dim=-1).numpy(), 1, atol=1e-6)
    assert not bool(result.values.triu(1).any())  # causal stays causal
    assert result.residual == residual and result.head_fusion == fusion
    assert fusion in result.provenance.convention and str(residual) in result.provenance.convention


def test_equals_the_plain_recursion_without_a_causal_mask():
    patterns = [torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(i)).softmax(dim=-1) for i in range(3)]
    result = attention_rollout(cache_of_patterns(patterns, attention_dir="bidirectional"))
    np.testing.assert_allclose(result.values.numpy(), plain(patterns), atol=1e-6)


def test_chosen_rows_are_rows_of_all():
    cache = cache_of_patterns(causal_patterns(layers=4, batch=2, heads=3, length=9))
    every = attention_rollout(cache).values
    torch.testing.assert_close(attention_rollout(cache, rows=-1).values, every[:, -1:], atol=1e-7, rtol=0)
    some = attention_rollout(cache, rows=[-1, 2, -9])
    torch.testing.assert_close(some.values, every[:, [8, 2, 0]], atol=1e-7, rtol=0)
    assert some.rows.tolist() == [[8, 2, 0]] * 2


def test_attention_to_oneself_stays_where_it_is():
    cache = cache_of_patterns([torch.eye(6).expand(1, 2, 6, 6)] * 4)
    assert torch.equal(attention_rollout(cache).values[0], torch.eye(6))


def test_the_order_of_heads_does_not_matter():
    patterns = causal_patterns(layers=3, batch=1, heads=4, length=8)
    shuffled = [pattern[:, torch.randperm(4, generator=torch.Generator().manual_seed(1))] for pattern in patterns]
    for fusion in ("mean", "max", "min"):
        one, other = (attention_rollout(cache_of_patterns(p), head_fusion=fusion) for p in (patterns, shuffled))
        torch.testing.assert_close(one.values, other.values, atol=1e-7, rtol=0)


@pytest.mark.parametrize("form", [{}, ROTARY], ids=["gpt2", "rotary-rms"])
def test_runs_on_a_cache_that_transformer_lens_made_alone(form):
    model = text_model(**form)
    _, cache = run(model, tokens(2, 10), names_filter=attention_rollout.needs)
    assert len(cache) == model.cfg.n_layers
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.cfg.n_layers)]
    assert float(patterns[0].std()) > 0.1  # far from uniform, or the order of layers would not matter
    np.testing.assert_allclose(attention_rollout(cache).values.numpy(), plain(patterns), atol=1e-6)


@pytest.mark.parametrize("form", [{}, ROTARY], ids=["gpt2", "rotary-rms"])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_padded_batch_equals_each_example_alone(form, left):
    model = text_model(**form)
    rows = [tokens(1, n, seed=n)[0] for n in (5, 9, 7)]
    ids, mask = padded(rows, left=left)
    _, cache = run(model, ids, mask)
    last = attention_rollout(cache, rows=-1, attention_mask=mask)
    every = attention_rollout(cache, attention_mask=mask)
    for example, row in enumerate(rows):
        alone = attention_rollout(run(model, row[None])[1]).values[0]
        own = mask[example].bool()
        torch.testing.assert_close(every.values[example][own][:, own], alone, atol=2e-6, rtol=0)
        torch.testing.assert_close(last.values[example, 0, own], alone[-1], atol=2e-6, rtol=0)
        assert not bool(every.values[example][own][:, ~own].any())
        assert int(last.rows[example, 0]) == int(own.nonzero()[-1])
    torch.testing.assert_close(every.values.sum(dim=-1), torch.ones(mask.shape), atol=2e-6, rtol=0)
    cache.attention_mask = mask  # as the lens leaves it
    assert torch.equal(attention_rollout(cache, rows=-1).values, last.values)


def test_half_precision_patterns_are_multiplied_in_single_precision():
    patterns = [pattern.bfloat16() for pattern in causal_patterns(layers=6, batch=1, heads=2, length=12)]
    result = attention_rollout(cache_of_patterns(patterns))
    assert result.values.dtype == torch.float32
    np.testing.assert_allclose(result.values.numpy(), plain(patterns), atol=1e-6)


def test_the_table_has_one_row_for_each_number():
    result = attention_rollout(cache_of_patterns(causal_patterns(layers=2, batch=2, heads=1, length=4)), rows=[0, -1])
    table = result.to_dataframe()
    assert len(table) == 2 * 2 * 4
    entry = table[(table["example"] == 1) & (table["row"] == 3) & (table["pos"] == 2)]
    assert entry["value"].item() == pytest.approx(float(result.values[1, 1, 2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_fusion": "median"}, "'median', expected 'mean', 'max', 'min' or 'value_weighted'"),
        ({"residual": 1.5}, "residual is 1.5, expected a weight from 0 to 1"),
        ({"residual": -0.1}, "residual is -0.1"),
        ({"rows": 4}, "position 4 is out of range"),
        ({"rows": [0, -5]}, "position -5 is out of range"),
        ({"rows": []}, "rows is empty"),
        ({"attention_mask": torch.ones(1, 5, dtype=torch.long)}, r"attention_mask has the shape \[1, 5\]"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    cache = cache_of_patterns(causal_patterns(layers=2, batch=1, heads=1, length=4))
    with pytest.raises(LensplugError, match=message):
        attention_rollout(cache, **options)


def reference(patterns, *, heads=None, discard=0.0, exclude_first=False, residual=0.5, norms=None, layers=None):
    """Every option by a plain loop over examples and rows, in double precision: `[example layer row pos]`.

    `norms` are `[layer][example head pos head]` inner products for value weights; `residual` may be `[layer][example
    pos]`.
    """
    batch, _, length, _ = patterns[0].shape
    first, last = layers or (0, len(patterns) - 1)
    result = np.zeros((batch, last - first + 1, length, length))
    for example in range(batch):
        product = np.eye(length)
        for layer in range(first, last + 1):
            pattern = patterns[layer][example].double().numpy()
            chosen = [h for h in range(len(pattern)) if heads is None or (layer, h) in heads or h in heads]
            mixed = np.zeros((length, length))
            for row in range(length):
                if norms is None:
                    weights = sum((pattern[h, row] for h in chosen), np.zeros(length)) / max(1, len(chosen))
                else:
                    brought = np.einsum("hk,khm->km", pattern[chosen, row], norms[layer][example][:, chosen])
                    weights = np.sqrt((brought**2).sum(axis=-1))
                weights = weights.copy()
                if exclude_first:
                    weights[0] = 0
                there = np.flatnonzero(weights)
                order = there[np.argsort(weights[there], kind="stable")]
                weights[order[: int(len(there) * discard)]] = 0
                own = np.eye(length)[row]
                r = residual if isinstance(residual, float) else residual[layer][example, row]
                mixed[row] = (1 - r) * weights / weights.sum() + r * own if weights.any() else own
            product = mixed @ product
            result[example, layer - first] = product
    return result


@pytest.mark.parametrize(
    "options",
    [
        {"heads": (0, 2)},
        {"heads": ((0, 1), (0, 3), (3, 2))},
        {"discard": 0.4},
        {"discard": 0.9, "residual": 0.0},
        {"exclude_first": True},
        {"exclude_first": True, "discard": 0.5, "heads": (1,), "residual": 0.2},
        {"layers": (1, 3)},
        {"layers": (2, 2)},
    ],
    ids=str,
)
def test_every_option_is_what_a_plain_loop_gives(options):
    patterns = causal_patterns(layers=5, batch=2, heads=4, length=9)
    expected = reference(patterns, **options)
    cache = cache_of_patterns(patterns)
    result = attention_rollout(cache, per_layer=True, **options)
    assert result.by_layer is not None
    np.testing.assert_allclose(result.by_layer.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(result.values.numpy(), expected[:, -1], atol=1e-6)
    np.testing.assert_allclose(expected.sum(axis=-1), 1, atol=1e-9)
    last = attention_rollout(cache, rows=[-1, 3], per_layer=True, **options)
    assert last.by_layer is not None
    np.testing.assert_allclose(last.by_layer.numpy(), expected[:, :, [8, 3]], atol=1e-6)
    assert attention_rollout(cache, **options).by_layer is None
    assert float(np.abs(expected[:, -1] - plain(patterns)).max()) > 0.01, "this test can fail"


def test_the_convention_says_what_was_left_out():
    cache = cache_of_patterns(causal_patterns(layers=3, batch=1, heads=2, length=5))
    said = attention_rollout(cache, heads=[0], discard=0.25, exclude_first=True, layers=(-2, -1)).provenance.convention
    for words in ("heads 0", "smallest 25%", "first position left out", "layers 1 to 2"):
        assert words in said
    assert "first position kept" in attention_rollout(cache).provenance.convention


BEHIND = {**ROTARY, "use_normalization_before_and_after": True}


@pytest.mark.parametrize(
    "form",
    [{}, ROTARY, {**ROTARY, "n_key_value_heads": 1}, BEHIND],
    ids=["gpt2", "rotary-rms", "gqa", "norm-behind"],
)
@pytest.mark.parametrize("heads", [None, (0, 2)])
def test_value_weighted_heads_are_weighted_by_what_they_bring(form, heads):
    model = text_model(**form)
    _, cache = run(model, tokens(2, 10))
    n = range(model.cfg.n_layers)
    patterns = [cache["pattern", layer] for layer in n]
    brought = []
    for layer in n:
        v = cache["v", layer].repeat_interleave(3 // cache["v", layer].shape[2], dim=2)
        W_O = model.blocks[layer].attn.W_O.detach()
        if (norm := getattr(model.blocks[layer], "ln1_post", None)) is not None:  # a HookedTransformer's
            W_O = W_O * norm.w.detach()
        brought.append(torch.einsum("bkhd,hdm->bkhm", v, W_O).double().numpy())
    result = attention_rollout(cache, head_fusion="value_weighted", heads=heads)
    expected = reference(patterns, norms=brought, heads=heads)
    np.testing.assert_allclose(result.values.numpy(), expected[:, -1], atol=2e-6)
    assert float(np.abs(expected[:, -1] - plain(patterns)).max()) > 0.02, "this test can fail"


def brought_by_hugging_face(decoder, embeds, mask, patterns):
    """What each head and key put into the stream of each query, by Hugging Face's own modules: `[head query key d]`.

    Each key alone goes through o_proj; the norm behind it, if any, divides by its row's scale and multiplies.
    """
    found, streams = [], []
    handles = [layer.register_forward_pre_hook(lambda m, a, k: streams.append(a[0] if a else k["hidden_states"]),
                                               with_kwargs=True) for layer in decoder.layers]  # fmt: skip
    with torch.no_grad():
        decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    for handle in handles:
        handle.remove()
    for layer, stream, pattern in zip(decoder.layers, streams, patterns, strict=True):
        attn = layer.self_attn
        heads, size = pattern.shape[1], attn.head_dim
        v = attn.v_proj(layer.input_layernorm(stream))[0].view(len(stream[0]), -1, size)
        v = v.repeat_interleave(heads // v.shape[1], dim=1)  # [key head d_head]
        each = pattern[0].permute(1, 2, 0)[..., None] * v  # [query key head d_head]
        through = attn.o_proj(each.flatten(2)).detach()
        behind = getattr(layer, "post_feedforward_layernorm", None) and layer.post_attention_layernorm
        if behind:
            whole = through.sum(dim=1)
            scale = (behind(whole) / whole).detach()  # of each row and channel: the weight over the row's scale
            through = through * scale[:, None]
        found.append(through)
    return found


@pytest.mark.parametrize("kind", ["Gemma3", "Qwen3"])
def test_value_weights_are_what_hugging_faces_modules_put_into_the_stream(kind):
    import transformers as hf
    from support.models import randomise

    import lensplug
    from lensplug.analysis.attention.cached_mixing import read_fused
    from lensplug.reductions.mixing import Mixing

    sizes = {
        "vocab_size": 60, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    config = getattr(hf, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")(**sizes)
    model = randomise(getattr(hf, f"{kind}ForCausalLM")(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "post_attention_layernorm" in name:  # far from 1, or leaving it out would not be seen
                parameter.copy_(3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    ids = tokens(1, 8)
    lens = lensplug.wrap(model)
    _, cache = lens.run_with_cache(lens.encode({"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    patterns = [cache["pattern", layer] for layer in range(2)]
    for layer, brought in enumerate(
        brought_by_hugging_face(model.model, model.model.embed_tokens(ids), None, patterns)
    ):
        norms = brought.norm(dim=-1)
        fused = read_fused(cache, Mixing("value_weighted"), layer, needed_by="attention_rollout")[0]
        torch.testing.assert_close(
            fused / fused.sum(-1, keepdim=True), norms / norms.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4
        )


def test_the_residual_as_it_is_measured():
    model = text_model(**ROTARY)
    _, cache = run(model, tokens(2, 10))
    n = range(model.cfg.n_layers)
    norms = [
        [cache[f"blocks.{layer}.{name}"].norm(dim=-1).double().numpy() for name in ("hook_resid_pre", "hook_attn_out")]
        for layer in n
    ]
    shares = [stream / (stream + added) for stream, added in norms]
    result = attention_rollout(cache, residual="measured")
    expected = reference([cache["pattern", layer] for layer in n], residual=shares)
    np.testing.assert_allclose(result.values.numpy(), expected[:, -1], atol=1e-6)
    assert result.residual == "measured" and float(np.ptp(np.stack(shares))) > 0.05


def test_a_padded_batch_without_its_first_position_equals_each_example_alone():
    model = text_model()
    rows = [tokens(1, n, seed=n)[0] for n in (5, 9)]
    ids, mask = padded(rows, left=True)
    options: dict[str, Any] = {
        "exclude_first": True,
        "discard": 0.3,
        "residual": "measured",
        "head_fusion": "value_weighted",
    }
    every = attention_rollout(run(model, ids, mask)[1], attention_mask=mask, **options)
    for example, row in enumerate(rows):
        own = mask[example].bool()
        alone = attention_rollout(run(model, row[None])[1], **options).values[0]
        torch.testing.assert_close(every.values[example][own][:, own], alone, atol=5e-6, rtol=0)


def test_equal_weights_at_the_edge_are_all_kept():
    uniform = torch.ones(1, 1, 6, 6).tril()
    cache = cache_of_patterns([uniform / uniform.sum(dim=-1, keepdim=True)])
    assert torch.equal(attention_rollout(cache, discard=0.5).values, attention_rollout(cache).values)


def test_the_table_of_every_layer():
    cache = cache_of_patterns(causal_patterns(layers=3, batch=2, heads=1, length=4))
    result = attention_rollout(cache, rows=[0, -1], per_layer=True, layers=(1, 2))
    assert result.by_layer is not None
    table = result.to_dataframe()
    assert len(table) == 2 * 2 * 2 * 4 and set(table["layer"]) == {1, 2}
    at = (table["example"] == 1) & (table["layer"] == 2) & (table["row"] == 3) & (table["pos"] == 2)
    assert table[at]["value"].item() == pytest.approx(float(result.by_layer[1, 1, 1, 2]))
    named = result.by_position(1, raw=True)
    assert list(named) == [f"into position {row}, layer {layer}" for row in (0, 3) for layer in (1, 2)]
    assert torch.equal(named["into position 3, layer 1"], result.by_layer[1, 0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": (2,)}, "heads has 2, the model has layers 0 to 2 and heads 0 to 1"),
        ({"heads": ((3, 0),)}, r"heads has \(3, 0\)"),
        ({"heads": ()}, "heads is empty"),
        ({"discard": 1.0}, "discard is 1.0, expected a share from 0 to below 1"),
        ({"residual": "norms"}, "residual is 'norms', expected 'measured' or a number"),
        ({"layers": (2, 1)}, "layers is .* the first and the last of 0 to 2"),
        ({"layers": (0, 3)}, "layers is"),
        ({"residual": "measured"}, "residual='measured' needs 'blocks.2.hook_resid_pre'"),
        ({"head_fusion": "value_weighted"}, "head_fusion='value_weighted' needs 'blocks.2.attn.hook_v'"),
    ],
)
def test_more_options_out_of_range_are_refused(options, message):
    cache = cache_of_patterns(causal_patterns(layers=3, batch=1, heads=2, length=4))
    with pytest.raises(LensplugError, match=message):
        attention_rollout(cache, **options)
