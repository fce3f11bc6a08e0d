"""What every analysis asks of a cache: what is missing, broken or cut is refused in words that help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.caches import ROTARY, cache_of_patterns, causal_patterns, padded, run, text_model, tokens
from transformer_lens import ActivationCache

from lensplug.analysis import attention_flow, attention_rollout, head_specialization, logit_lens
from lensplug.analysis.provenance import Provenance
from lensplug.cache.reading import attended, n_layers
from lensplug.errors import LensplugError
from lensplug.positions.modality_map import ModalityMap

IMAGE = 49


def specialization(cache: Any) -> Any:
    length = next(value for name, value in cache.items() if "pattern" in name or "resid" in name).shape[-2]
    ids = torch.arange(length)[None] % 2 * IMAGE
    return head_specialization(cache, ModalityMap.build(ids, torch.ones_like(ids), placeholder_ids={"image": IMAGE}))


ANALYSES: dict[str, tuple[Callable[[Any], Any], Any, str]] = {
    "head_specialization": (specialization, head_specialization, "blocks.1.attn.hook_pattern"),
    "attention_rollout": (attention_rollout, attention_rollout, "blocks.1.attn.hook_pattern"),
    "logit_lens": (logit_lens, logit_lens, "blocks.1.hook_resid_post"),
    "attention_flow": (attention_flow, attention_flow, "blocks.1.attn.hook_pattern"),
}
"""Name -> how to run it, the analysis itself, one hook that it reads."""

each_analysis = pytest.mark.parametrize(("analyse", "analysis", "hook"), ANALYSES.values(), ids=ANALYSES)
on_patterns = pytest.mark.parametrize("analyse", [specialization, attention_rollout], ids=list(ANALYSES)[:2])


@each_analysis
@pytest.mark.parametrize("form", [{}, ROTARY], ids=["gpt2", "rotary-rms"])
def test_needs_keeps_enough_and_nothing_else(analyse, analysis, hook, form):
    model = text_model(n_layers=12, **form)  # twelve: "blocks.10" ends like "blocks.0"
    _, cache = run(model, tokens(1, 6), names_filter=analysis.needs)
    ending = hook.removeprefix("blocks.1.")
    expected = {f"blocks.{layer}.{ending}" for layer in range(12)}
    assert set(cache.keys()) == expected | ({"blocks.0.hook_resid_pre"} if analysis is logit_lens else set())
    analyse(cache)
    for name in cache.keys():  # every one of them is needed
        short = ActivationCache({key: value for key, value in cache.items() if key != name}, model)
        with pytest.raises(LensplugError) as error:
            analyse(short)
        assert repr(name) in str(error.value)


@each_analysis
def test_a_missing_hook_is_named_and_what_to_type(analyse, analysis, hook, request):
    model = text_model()
    _, cache = run(model, tokens(1, 6), names_filter=lambda name: analysis.needs(name) and name != hook)
    with pytest.raises(LensplugError) as error:
        analyse(cache)
    name = request.node.callspec.id
    assert f"{name} needs {hook!r}" in str(error.value)
    assert f"names_filter=analysis.{name}.needs" in str(error.value)


@each_analysis
def test_nan_is_refused_and_its_cause_told(analyse, analysis, hook):
    _, cache = run(text_model(), tokens(1, 6))
    cache.cache_dict[hook] = cache.cache_dict[hook].clone()
    cache.cache_dict[hook][0, 0, 0] = torch.nan
    with pytest.raises(LensplugError) as error:
        analyse(cache)
    for words in (repr(hook), "NaN", "fp16", "use bfloat16 or float32"):
        assert words in str(error.value)


@on_patterns
def test_a_pattern_of_some_rows_is_refused(analyse):
    cache = cache_of_patterns([pattern[:, :, -1:] for pattern in causal_patterns(2, 1, 3, 6)])
    ids = torch.zeros(1, 6, dtype=torch.long)
    call = analyse if analyse is attention_rollout else lambda c: head_specialization(c, map_of(ids))
    with pytest.raises(LensplugError, match=r"\[1, 3, 1, 6\], expected \[batch, head, pos, pos\]: .* needs every row"):
        call(cache)


def map_of(ids: torch.Tensor) -> ModalityMap:
    return ModalityMap.build(ids, torch.ones_like(ids), placeholder_ids={})


@on_patterns
def test_patterns_need_no_model(analyse):
    patterns = causal_patterns(3, 2, 2, 5)
    with_model = cache_of_patterns(patterns)
    alone = ActivationCache(dict(with_model.items()), None)
    if analyse is attention_rollout:
        assert torch.equal(attention_rollout(alone).values, attention_rollout(with_model).values)
        assert attention_rollout(alone).provenance.model == "unknown"
    else:
        ids = tokens(2, 5)
        one, other = (head_specialization(cache, map_of(ids)).mass for cache in (alone, with_model))
        assert torch.equal(one, other)


def test_the_logit_lens_needs_a_model():
    _, cache = run(text_model(), tokens(1, 5))
    with pytest.raises(
        LensplugError, match=r"lost its model \(cache.model is None\).*needs its unembedding: .* cache.model = lens"
    ):
        logit_lens(ActivationCache(dict(cache.items()), None))


@on_patterns
def test_a_cache_without_layers_is_refused(analyse):
    empty = ActivationCache({"hook_embed": torch.zeros(1, 4, 8)}, None)
    with pytest.raises(LensplugError, match="holds no layer.*names_filter"):
        analyse(empty) if analyse is attention_rollout else head_specialization(empty, map_of(tokens(1, 4)))


def test_a_cache_without_batch_axis_gives_the_same():
    model, ids = text_model(), tokens(1, 7)
    _, with_batch = run(model, ids)
    for without in (run(model, ids, remove_batch_dim=True)[1], run(model, ids)[1].remove_batch_dim()):
        assert without["blocks.0.attn.hook_pattern"].ndim == 3
        for rows in (None, [-1, 2]):
            one, other = (attention_rollout(cache, rows=rows) for cache in (without, with_batch))
            assert torch.equal(one.values, other.values) and torch.equal(one.rows, other.rows)
        heads, same = (head_specialization(cache, map_of(ids), query=-2) for cache in (without, with_batch))
        assert torch.equal(heads.mass, same.mass) and torch.equal(heads.chance, same.chance)
        logits, equal = (logit_lens(cache, positions=[-1, 0]) for cache in (without, with_batch))
        assert torch.equal(logits.log_probability, equal.log_probability) and logits.top_texts == equal.top_texts


def test_layers_are_counted_by_the_model_else_by_the_names():
    patterns = causal_patterns(11, 1, 1, 3)
    cache = cache_of_patterns(patterns)
    assert n_layers(cache) == 11
    assert n_layers(ActivationCache(dict(cache.items()), None)) == 11
    with pytest.raises(LensplugError, match="holds no layer"):
        n_layers(ActivationCache({"hook_embed": patterns[0]}, None))


def test_the_attention_mask_is_the_one_given_then_the_one_of_the_lens_then_all():
    cache = cache_of_patterns(causal_patterns(1, 2, 1, 4))
    _, given = padded([torch.ones(2).long(), torch.ones(4).long()], left=True)
    device = torch.device("cpu")
    assert bool((attended(cache, (2, 4), None, device) == 1).all())
    cache.attention_mask = torch.flip(given, [0])
    assert torch.equal(attended(cache, (2, 4), None, device), cache.attention_mask)
    assert torch.equal(attended(cache, (2, 4), given.bool().long(), device), given)
    with pytest.raises(LensplugError, match=r"attention_mask has the shape \[2, 4\], the cache is \[2, 5\]"):
        attended(cache, (2, 5), None, device)


def test_provenance_says_how_a_result_was_made():
    model = text_model(dtype=torch.bfloat16)
    _, whole = run(model, tokens(1, 5))
    _, part = run(model, tokens(1, 5), names_filter=attention_rollout.needs)
    made = Provenance.of(whole, "attention_rollout", "as it is")
    assert (made.analysis, made.model, made.dtype) == ("attention_rollout", "text-model", "bfloat16")
    assert made.versions["torch"] == torch.__version__.split("+")[0]
    # What else a cache holds (the fp32 scales of norms) changes nothing: such results can be combined.
    assert made == Provenance.of(part, "attention_rollout", "as it is")
    alone = ActivationCache(dict(part.items()), None)
    assert Provenance.of(alone, "attention_rollout", "as it is").dtype == "bfloat16"
