"""What must hold of every rollout and gradient rollout, whatever the attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.caches import cache_of_patterns
from torch import Tensor

from lensplug.analysis import attention_rollout, gradient_rollout

stacks = st.tuples(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.floats(0.1, 20))
options = st.fixed_dictionaries(
    {
        "residual": st.floats(0, 1),
        "head_fusion": st.sampled_from(["mean", "max", "min"]),
        "discard": st.floats(0, 0.95),
        "exclude_first": st.booleans(),
    }
)


def drawn(stack) -> list[Tensor]:
    """Causal patterns, flat to sharp."""
    seed, layers, heads, length, sharp = stack
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(length, length).triu(1).bool()
    scores = [sharp * torch.randn(2, heads, length, length, generator=generator) for _ in range(layers)]
    return [one.masked_fill(mask, -torch.inf).softmax(dim=-1) for one in scores]


@settings(max_examples=60, deadline=None)
@given(stacks, options)
def test_rows_sum_to_one_and_causal_stays_causal(stack, chosen):
    values = attention_rollout(cache_of_patterns(drawn(stack)), **chosen).values
    np.testing.assert_allclose(values.sum(dim=-1).numpy(), 1, atol=2e-6)
    assert not bool(values.triu(1).any()) and bool((values >= 0).all())


@settings(max_examples=30, deadline=None)
@given(stacks, options)
def test_attention_to_oneself_moves_nothing(stack, chosen):
    _, layers, heads, length, _ = stack
    cache = cache_of_patterns([torch.eye(length).expand(2, heads, length, length)] * layers)
    values = attention_rollout(cache, **chosen).values
    np.testing.assert_allclose(values.numpy(), np.broadcast_to(np.eye(length), values.shape), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(stacks, options)
def test_the_order_of_heads_changes_nothing(stack, chosen):
    patterns = drawn(stack)
    order = torch.randperm(patterns[0].shape[1], generator=torch.Generator().manual_seed(stack[0]))
    # A mean in another order rounds otherwise; which of two nearly equal weights is discarded may hang on that.
    chosen = chosen | {"discard": 0.0}
    one, other = (
        attention_rollout(cache_of_patterns(p), **chosen) for p in (patterns, [p[:, order] for p in patterns])
    )
    np.testing.assert_allclose(one.values.numpy(), other.values.numpy(), atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(stacks, st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_is_that_far_from_single(stack, dtype):
    patterns = drawn(stack)
    half = attention_rollout(cache_of_patterns([p.to(dtype) for p in patterns])).values
    whole = attention_rollout(cache_of_patterns(patterns)).values
    assert float((half - whole).abs().max()) <= 2 * len(patterns) * torch.finfo(dtype).eps


@settings(max_examples=30, deadline=None)
@given(stacks, st.sampled_from(["positive", "negative", "signed"]), st.integers(0, 8))
def test_relevance_is_causal_and_a_zero_row_gives_no_nan(stack, contributions, zero):
    patterns = drawn(stack)
    generator = torch.Generator().manual_seed(stack[0] + 1)
    grads = {f"blocks.{n}.attn.hook_pattern": torch.randn(p.shape, generator=generator) for n, p in enumerate(patterns)}
    row = zero % patterns[0].shape[-1]
    for gradient in grads.values():
        gradient[:, :, row] = 0
    for normalize in (False,) if contributions == "signed" else (False, True):
        result = gradient_rollout(cache_of_patterns(patterns), grads, contributions=contributions, normalize=normalize)
        assert bool(result.values.isfinite().all()) and not bool(result.relevance.triu(1).any())
        assert not bool(result.relevance[:, row].any())


def test_adding_a_constant_to_the_logits_changes_no_relevance():
    from support.models import scene

    import lensplug

    lens = lensplug.tiny.llava_onevision()
    inputs = lens.prepare("What is the color? Answer single word.", images=[scene(96, 96)])

    def target(add: float) -> Callable[[Tensor], Tensor]:
        return lambda logits: (logits + add)[0, -1, 7]

    runs = [lens.run_with_gradients(inputs, target=target(add))[1:] for add in (0, 1e3)]
    one, other = (gradient_rollout(*run, rows=-1).relevance for run in runs)
    torch.testing.assert_close(one, other)
    assert bool(one.any())
